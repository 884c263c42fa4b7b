// Vectors of kLanes floats, written with the compiler's vector extensions, so that +, *, < and ?:
// compile to the current instruction set.  Included once per instruction set by for_each_isa.h,
// inside a namespace, so it has no include guard and no includes.

constexpr int kLanes = ESPAN_LANES;

typedef float VecF __attribute__((vector_size(4 * ESPAN_LANES)));
typedef uint32_t VecU __attribute__((vector_size(4 * ESPAN_LANES)));
typedef uint16_t VecH __attribute__((vector_size(2 * ESPAN_LANES)));

inline VecF broadcast(float value) { return value - VecF{}; }

// A cast between vector types of the same size preserves the bits.
inline VecU bits(VecF v) { return (VecU)v; }
inline VecF from_bits(VecU v) { return (VecF)v; }

inline VecF load(const float* p) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, VecF v) { __builtin_memcpy(p, &v, sizeof v); }

inline VecF load(const BFloat16* p) {
  VecH half;
  __builtin_memcpy(&half, p, sizeof half);
  return from_bits(__builtin_convertvector(half, VecU) << 16);
}

// Rounds to nearest even.  A NaN must not become infinity when its payload is rounded away.
inline void store(BFloat16* p, VecF v) {
  const VecU u = bits(v);
  const VecU rounded = (u + (((u >> 16) & 1) + 0x7fff)) >> 16;
  const VecH half = __builtin_convertvector(v == v ? rounded : VecU{} + 0x7fc0, VecH);
  __builtin_memcpy(p, &half, sizeof half);
}

inline VecF load(const Half* p) {
#if ESPAN_LANES == 16
  return (VecF)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif ESPAN_LANES == 8
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  VecF v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<float>(p[i]);
  return v;
#endif
}

inline void store(Half* p, VecF v) {
#if ESPAN_LANES == 16
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif ESPAN_LANES == 8
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) p[i] = Half(v[i]);
#endif
}

// The last n < kLanes elements of an array; nothing past them is read or written.
template <class T>
inline VecF load_tail(const T* p, int64_t n) {
  T lanes[kLanes] = {};
  __builtin_memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}

template <class T>
inline void store_tail(T* p, VecF v, int64_t n) {
  T lanes[kLanes];
  store(lanes, v);
  __builtin_memcpy(p, lanes, n * sizeof(T));
}

// The lane-wise maximum and minimum; `b` where `a` is NaN.
inline VecF maximum(VecF a, VecF b) {
#if ESPAN_LANES == 16
  return (VecF)_mm512_max_ps((__m512)a, (__m512)b);
#elif ESPAN_LANES == 8
  return (VecF)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

inline VecF minimum(VecF a, VecF b) {
#if ESPAN_LANES == 16
  return (VecF)_mm512_min_ps((__m512)a, (__m512)b);
#elif ESPAN_LANES == 8
  return (VecF)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
