// Activations and gates on vectors.  Included after vec.h, once per instruction set.

// a / b for 1 <= b < 2^126.  Dividing 16 lanes takes 16 cycles; an estimate of 1 / b and one Newton
// step on the quotient take 4.  The step squares the estimate's error of 2^-14, so the result is
// within 1 ulp.
inline VecF divide(VecF a, VecF b) {
#if ESPAN_LANES == 16
  const VecF estimate = (VecF)_mm512_rcp14_ps((__m512)b);
  const VecF quotient = a * estimate;
  return quotient + (a - quotient * b) * estimate;
#else
  return a / b;
#endif
}

// e^x for |x| <= 87 as (1 + series) * scale, within 1 ulp.  The range reduction is that of
// exp_nonpositive.  The series is e^r - 1 = r + r^2 q(r), where q is the minimax polynomial of
// degree 4: its error relative to e^r for |r| <= ln 2 / 2 is at most 3e-9, with one product fewer
// than the Taylor series.
struct Exp {
  VecF series, scale;
};

inline Exp exp_small(VecF x) {
  const VecF shift = broadcast(12582912.0f);
  const VecF shifted = x * 1.44269504f + shift;
  const VecF k = shifted - shift;
  const VecF r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  VecF q = broadcast(1.3814467e-3f);
  q = q * r + 8.368781e-3f;
  q = q * r + 4.1668393e-2f;
  q = q * r + 0.1666652f;
  q = q * r + 0.49999994f;
  return {q * (r * r) + r, from_bits((bits(shifted) << 23) + 0x3f800000u)};
}

#if ESPAN_BFLOAT16
// x sigmoid(x) = x / (1 + 2^t), within 2^-12.8: its readers keep 8 bits.  With t = k + r, the
// polynomial is 2^r for |r| <= 1/2, within 7.5e-5.  14 instructions instead of 21.
inline VecF silu(VecF x) {
  const VecF t = minimum(maximum(x * -1.44269504f, broadcast(-126.0f)), broadcast(126.0f));
  const VecF shift = broadcast(12582912.0f);
  const VecF shifted = t + shift;
  const VecF r = t - (shifted - shift);
  VecF p = r * 5.517162e-2f + 0.24261112f;
  p = p * r + 0.69326099f;
  p = p * r + 0.99992807f;
  const VecF power = from_bits(bits(p) + (bits(shifted) << 23));
  return x * (VecF)_mm512_rcp14_ps((__m512)(power + 1.0f));
}
#else
// x sigmoid(x), within 2.5 ulp.  Beyond 87 the sigmoid is as good as 1 or 0: e^87 is 6e37.
inline VecF silu(VecF x) {
  const Exp e = exp_small(minimum(maximum(-x, broadcast(-87.0f)), broadcast(87.0f)));
  return divide(x, e.scale * e.series + (e.scale + 1.0f));
}
#endif

// tanh(o/2) / 2 = sigmoid(o) - 1/2, within 6 ulp, as o p(o^2) / q(o^2).  The minimax polynomials of
// degree 4, whose coefficients are positive, are within 4.8e-8 of it.  Beyond 18.03 the result is
// 1/2.  NaN is not preserved.
inline VecF half_tanh(VecF o) {
  const VecF x = minimum(maximum(o, broadcast(-18.03f)), broadcast(18.03f));
  const VecF s = x * x, square = s * s;
  const VecF p = ((5.46004106e-5f + 8.04294145e-8f * s) + 1.30156481e-11f * square) * square +
                 (0.25f + 8.36252987e-3f * s);
  const VecF q = ((1.61703522e-3f + 5.13083362e-6f * s) + 3.03346845e-9f * square) * square +
                 (1.0f + 0.116783408f * s);
  return divide(x * p, q);
}

// half_tanh's clamp drops NaN; the factor o + x restores it.
inline VecF gated(VecF o, VecF x) { return (o + x) * half_tanh(o); }

inline VecF relu(VecF x) { return x < VecF{} ? VecF{} : x; }  // NaN stays NaN

// x tanh(log(1 + e^x)), within 4.5 ulp: with e = e^x and n = e (e + 2), it is x n / (n + 2).
// Beyond 20, n / (n + 2) is 1 and n would overflow.
inline VecF mish(VecF x) {
  const Exp p = exp_small(minimum(maximum(x, broadcast(-87.0f)), broadcast(20.0f)));
  const VecF e = p.scale * p.series + p.scale;
  const VecF n = e * (e + 2.0f);
  return x * divide(n, n + 2.0f);
}

template <Activation kActivation>
inline VecF activate(VecF o, const float* other) {
  if constexpr (kActivation == Activation::silu) return silu(o);
  if constexpr (kActivation == Activation::relu) return relu(o);
  if constexpr (kActivation == Activation::mish) return mish(o);
  if constexpr (kActivation == Activation::gate_sigmoid) return gated(o, load(other));
  if constexpr (kActivation == Activation::add) return o + load(other);
  return o;
}

// (x + o) g or (x + o) tanh(g)
template <Activation kActivation>
inline VecF gate_by(VecF o, VecF x, VecF g) {
  if constexpr (kActivation == Activation::gate_tanh) return (x + o) * (2.0f * half_tanh(2.0f * g));
  return (x + o) * g;
}
