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

// e^x for |x| <= 87, within 2 ulp; the steps are those of exp_nonpositive.
inline VecF exp_small(VecF x) {
  const VecF shift = broadcast(12582912.0f);
  const VecF shifted = x * 1.44269504f + shift;
  const VecF k = shifted - shift;
  const VecF r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  const VecF scale = from_bits((bits(shifted) << 23) + 0x3f800000u);
  VecF series = broadcast(1.0f / 5040);
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  return scale * (series * r) + scale;
}

// x sigmoid(x).  Beyond 87 the sigmoid is 1 or 0 to the last bit that counts: e^87 is 6e37.
inline VecF silu(VecF x) {
  VecF minus = -x;
  minus = minus < 87.0f ? minus : broadcast(87.0f);
  minus = minus > -87.0f ? minus : broadcast(-87.0f);
  return divide(x, exp_small(minus) + 1.0f);
}

// (o + x) (sigmoid(o) - 1/2), from e^-|o| - 1 as in sigmoid_parts, which divides exactly.
inline VecF gated(VecF o, VecF x) {
  const VecU sign = bits(o) & 0x80000000u;
  const VecF e = exp_nonpositive(from_bits(bits(o) | 0x80000000u)).expm1;
  const VecF half = divide(-0.5f * e, e + 2.0f);
  return (o + x) * from_bits((bits(half) & 0x7fffffffu) | sign);
}

template <Activation kActivation>
inline VecF activate(VecF o, const float* other) {
  if constexpr (kActivation == Activation::silu) return silu(o);
  if constexpr (kActivation == Activation::gate) return gated(o, load(other));
  if constexpr (kActivation == Activation::add) return o + load(other);
  return o;
}
