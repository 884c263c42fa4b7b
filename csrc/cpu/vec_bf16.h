// Pairs of bf16 values and their products.  Included after vec.h, for AVX-512 with bf16 products.

struct Pair {
  uint32_t values;
};

struct VecPairs {
  __m512i pairs;
};

inline VecPairs load(const Pair* p) { return {_mm512_loadu_si512(p)}; }
inline VecPairs broadcast(Pair p) { return {_mm512_set1_epi32(static_cast<int>(p.values))}; }

// Both products of each pair are added to a sum; denormals are flushed to zero.
inline VecF multiply_add(VecPairs x, VecPairs weights, VecF sum) {
  return (VecF)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x.pairs, (__m512bh)weights.pairs);
}

// Rounds 16 values to 8 pairs, to nearest even.
inline void store(Pair* p, VecF v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
