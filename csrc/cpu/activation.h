// SiLU and the gate on vectors; included after vec_math.h, as that file is.

// a / b for 1 <= b < 2^126.  A division of 16 lanes takes 16 cycles, an estimate with one step of
// Newton's on the quotient 4; the step squares the estimate's 2^-14, so the result is within 1 ulp.
inline VecF divide(VecF a, VecF b) {
#if ESPAN_LANES == 16
  const VecF estimate = (VecF)_mm512_rcp14_ps((__m512)b);
  const VecF quotient = a * estimate;
  return quotient + (a - quotient * b) * estimate;
#else
  return a / b;
#endif
}

// e^x for |x| <= 87 as (series r + 1) scale, within 1 ulp.  The reduction is that of
// exp_nonpositive; the series is e^r = 1 + r + r^2 q(r) with q of degree 4, whose largest relative
// error for |r| <= ln 2 / 2 is the least possible, 3e-9, and needs one product less than Taylor's.
struct Exp {
  VecF series, r, scale;
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
  return {q * r + 1.0f, r, from_bits((bits(shifted) << 23) + 0x3f800000u)};
}

// x sigmoid(x).  Beyond 87 the sigmoid is 1 or 0 to the last bit that counts: e^87 is 6e37.
inline VecF silu(VecF x) {
  const Exp e = exp_small(minimum(maximum(-x, broadcast(-87.0f)), broadcast(87.0f)));
  return divide(x, (e.series * e.r + 1.0f) * e.scale + 1.0f);
}

// (o + x) (sigmoid(o) - 1/2) with sigmoid(o) - 1/2 = -t / (2 (t + 2)), t = e^-|o| - 1, and o's
// sign: so it keeps its digits near zero.
inline VecF gated(VecF o, VecF x) {
  const VecU sign = bits(o) & 0x80000000u;
  const Exp e = exp_small(maximum(from_bits(bits(o) | 0x80000000u), broadcast(-87.0f)));
  const VecF t = e.scale * (e.series * e.r) + (e.scale - 1.0f);
  const VecF half = divide(-0.5f * t, t + 2.0f);
  // A NaN is lost in the clamp, but not in the sum.
  return (o + x) * from_bits((bits(half) & 0x7fffffffu) | sign);
}

template <Activation kActivation>
inline VecF activate(VecF o, const float* other) {
  if constexpr (kActivation == Activation::silu) return silu(o);
  if constexpr (kActivation == Activation::gate) return gated(o, load(other));
  if constexpr (kActivation == Activation::add) return o + load(other);
  return o;
}
