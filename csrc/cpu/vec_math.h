// Elementary functions on vectors.  Included after vec.h, once per instruction set.

struct ExpPair {
  VecF exp;    // e^x
  VecF expm1;  // e^x - 1, without cancellation near x = 0
};

// e^x and e^x - 1 for x <= 0, to about 1 ulp.  NaN is preserved.  Below -87, e^x is 0 instead of a
// denormal.  Positive x is not needed: sigmoid, tanh and SiLU are all functions of e^-|x|.
inline ExpPair exp_nonpositive(VecF x) {
  const VecF kLowest = broadcast(-87.0f);
  const VecF clamped = x < kLowest ? kLowest : x;

  // x = k ln 2 + r with |r| <= ln 2 / 2.  Adding 1.5 * 2^23 rounds to an integer and leaves it in
  // the low bits.  The high part of ln 2 has 9 bits, so its product with k is exact even without
  // FMA.
  const VecF shift = broadcast(12582912.0f);
  const VecF shifted = clamped * 1.44269504f + shift;
  const VecF k = shifted - shift;
  const VecF r = (clamped - k * 0.693359375f) + k * 2.12194440e-4f;
  const VecF scale = from_bits((bits(shifted) << 23) + 0x3f800000u);  // 2^k

  // The Taylor series of e^r - 1; the first omitted term is 1.5e-8 of the sum, a quarter of an ulp.
  VecF series = broadcast(1.0f / 5040);
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * (r * r) + r;

  return {x < kLowest ? VecF{} : scale * series + scale, scale * series + (scale - 1.0f)};
}

struct SigmoidPair {
  VecF minus_half;  // sigmoid(x) - 1/2 = tanh(x/2) / 2, without cancellation near x = 0
  VecF slope;       // sigmoid'(x)
};

// With t = e^-|x| - 1: |sigmoid(x) - 1/2| = -t / (2 (t + 2)) and sigmoid'(x) = e^-|x| / (t + 2)^2.
// The slope is also 1/4 - (sigmoid - 1/2)^2, but that cancels to 0 beyond |x| = 17.
inline SigmoidPair sigmoid_parts(VecF x) {
  const VecU sign = bits(x) & 0x80000000u;
  const ExpPair e = exp_nonpositive(from_bits(bits(x) | 0x80000000u));
  const VecF inverse = 1.0f / (e.expm1 + 2.0f);
  const VecF magnitude = -0.5f * e.expm1 * inverse;
  return {from_bits((bits(magnitude) & 0x7fffffffu) | sign), e.exp * inverse * inverse};
}
