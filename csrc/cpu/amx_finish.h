// Activates and stores the sums of a block of pixels, [group][kBlockPixels][16].  Included after
// vec.h.

// The pixels [first, end) of the block that starts at x.
struct Part {
  int64_t x, first, end;
  const float* sums;

  const float* at(int64_t group, int64_t pixel) const {
    return sums + (group * kBlockPixels + pixel) * kLanes;
  }
};

// Two vectors: 32 channels of a pixel, one cache line in bf16.
struct Pair {
  VecF a, b;
};

inline Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }
inline Pair operator-(Pair x, Pair y) { return {x.a - y.a, x.b - y.b}; }

// Permutation indices that move words 0 to 15 into the upper halves of the lanes, and for the
// second vector words 16 to 31.
struct Unpack {
  alignas(64) uint16_t words[2][32];
  constexpr Unpack() : words() {
    for (int i = 0; i < 32; ++i) {
      words[0][i] = static_cast<uint16_t>(i / 2);
      words[1][i] = static_cast<uint16_t>(16 + i / 2);
    }
  }
};
constexpr Unpack kUnpack;

inline Pair unpack(__m512i halves) {
  const __m512i first = _mm512_load_si512(kUnpack.words[0]);
  const __m512i second = _mm512_load_si512(kUnpack.words[1]);
  return {(VecF)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, first, halves),
          (VecF)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, second, halves)};
}

inline __m512i pack(Pair v) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)v.b, (__m512)v.a); }

// `low` is the distance in bytes from the high halves to the low ones, which only kLow reads.
template <bool kLow>
inline Pair load_pair(const char* p, int64_t low) {
  const Pair high = unpack(_mm512_loadu_si512(p));
  if constexpr (!kLow) return high;
  return high + unpack(_mm512_loadu_si512(p + low));
}

// Stores both vectors, or the first alone.
template <bool kAlone>
inline void store_halves(char* p, __m512i halves) {
  if constexpr (kAlone)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(halves));
  else
    _mm512_storeu_si512(p, halves);
}

// If v overflows bf16, high + low is inf - inf, a NaN, and the range reports it as not finite.
template <bool kLow, bool kAlone = false>
inline void store_pair(char* p, int64_t low, Pair v) {
  const __m512i high = pack(v);
  store_halves<kAlone>(p, high);
  if constexpr (kLow) store_halves<kAlone>(p + low, pack(v - unpack(high)));
}

// 2^t for t <= 120: r = t - floor(t), and 2^r is a minimax polynomial with a relative error of
// 7.5e-8 (degree 5) or 2.6e-6 (degree 4).
template <bool kExact>
inline VecF two_to(VecF t) {
  const VecF r = (VecF)_mm512_reduce_ps((__m512)t, 9);
  VecF p;
  if constexpr (kExact) {
    p = r * 1.87757669e-3f + 8.98934017e-3f;
    p = p * r + 5.58263179e-2f;
    p = p * r + 0.240153617f;
    p = p * r + 0.693153073f;
    p = p * r + 0.999999925f;
  } else {
    p = r * 1.3534168e-2f + 5.20114613e-2f;
    p = p * r + 0.241442756f;
    p = p * r + 0.693003835f;
    p = p * r + 1.00000259f;
  }
  return (VecF)_mm512_scalef_ps((__m512)p, (__m512)t);
}

// a / b: the estimate of 1 / b has an error of 2^-14; a Newton step on the quotient reduces it to
// 1 ulp.
template <bool kExact>
inline VecF quotient(VecF a, VecF b) {
  const VecF estimate = (VecF)_mm512_rcp14_ps((__m512)b);
  const VecF q = a * estimate;
  if constexpr (!kExact) return q;
  return q + (a - q * b) * estimate;
}

template <bool kExact>
inline VecF exp_of_minus(VecF x) {
  return two_to<kExact>(minimum(x * -1.44269504f, broadcast(120.0f)));
}

// x sigmoid(x)
template <bool kExact>
inline VecF silu_of(VecF x) {
  return quotient<kExact>(x, exp_of_minus<kExact>(x) + 1.0f);
}

// (o + x) (sigmoid(o) - 1/2), sigmoid(o) - 1/2 = (1 - e^-o) / (2 (1 + e^-o))
template <bool kExact>
inline VecF gate_of(VecF o, VecF x) {
  const VecF e = exp_of_minus<kExact>(o);
  return (o + x) * quotient<kExact>(0.5f - 0.5f * e, e + 1.0f);
}

// x tanh(log(1 + e^x)): with e = e^x and n = e (e + 2), it is x n / (n + 2).  Beyond 20, n / (n +
// 2) is 1 and n would overflow.
template <bool kExact>
inline VecF mish_of(VecF x) {
  const VecF e = two_to<kExact>(minimum(x, broadcast(20.0f)) * 1.44269504f);
  const VecF n = e * (e + 2.0f);
  return x * quotient<kExact>(n, n + 2.0f);
}

// tanh(g) = (1 - e^-2g) / (1 + e^-2g)
template <bool kExact>
inline VecF tanh_of(VecF g) {
  const VecF e = exp_of_minus<kExact>(g + g);
  return quotient<kExact>(1.0f - e, e + 1.0f);
}

template <Activation kActivation, bool kExact>
inline VecF activate_of(VecF o, VecF x) {
  if constexpr (kActivation == Activation::silu) return silu_of<kExact>(o);
  if constexpr (kActivation == Activation::relu) return o < VecF{} ? VecF{} : o;
  if constexpr (kActivation == Activation::mish) return mish_of<kExact>(o);
  if constexpr (kActivation == Activation::gate_sigmoid) return gate_of<kExact>(o, x);
  return o;
}

// Two groups of outputs, or with kAlone the last of an odd number.
template <Activation kActivation, bool kBoth, bool kAlone>
inline void finish_pair(const FeatureRow& r, const Part& part, int64_t group) {
  const int64_t x = part.x + part.first;
  char* out = r.out.data + x * r.out.step + 32 * group;
  const char* other = r.other.data + x * r.other.step + 32 * group;
  const float* sums = part.at(group, part.first);
  for (int64_t i = part.first; i < part.end;
       ++i, out += r.out.step, other += r.other.step, sums += kLanes) {
    Pair with{};
    if constexpr (kActivation == Activation::gate_sigmoid)
      with = load_pair<kBoth>(other, r.other.low);
    Pair v;
    v.a = activate_of<kActivation, kBoth>(load(sums), with.a);
    v.b =
        kAlone ? v.a : activate_of<kActivation, kBoth>(load(sums + kBlockPixels * kLanes), with.b);
    store_pair<kBoth, kAlone>(out, r.out.low, v);
  }
}

template <Activation kActivation, bool kBoth>
inline void finish_features(const FeatureRow& r, const Part& part) {
  const int64_t groups = r.products.groups;
  int64_t group = 0;
  for (; group + 1 < groups; group += 2) finish_pair<kActivation, kBoth, false>(r, part, group);
  if (group < groups) finish_pair<kActivation, kBoth, true>(r, part, group);
}

// The last step of a block of which `part` holds the sums o, and `gate` those of the gate's
// convolution g: (x + o) g or (x + o) tanh(g).
template <Activation kActivation, bool kBoth, bool kAlone>
inline void finish_gate_pair(const FeatureRow& r, const Part& part, const Part& gate,
                             int64_t group) {
  char* out = r.out.data + part.x * r.out.step + 32 * group;
  const char* other = r.other.data + part.x * r.other.step + 32 * group;
  const auto gated = [](VecF o, VecF x, VecF g) {
    return (x + o) * (kActivation == Activation::gate_tanh ? tanh_of<kBoth>(g) : g);
  };
  for (int64_t i = part.first; i < part.end; ++i, out += r.out.step, other += r.other.step) {
    const Pair x = load_pair<kBoth>(other, r.other.low);
    Pair v;
    v.a = gated(load(part.at(group, i)), x.a, load(gate.at(group, i)));
    v.b = kAlone ? v.a : gated(load(part.at(group + 1, i)), x.b, load(gate.at(group + 1, i)));
    store_pair<kBoth, kAlone>(out, r.out.low, v);
  }
}

template <Activation kActivation, bool kBoth>
inline void finish_gate(const FeatureRow& r, const Part& part, const Part& gate) {
  const int64_t groups = r.products.groups;
  int64_t group = 0;
  for (; group + 1 < groups; group += 2)
    finish_gate_pair<kActivation, kBoth, false>(r, part, gate, group);
  if (group < groups) finish_gate_pair<kActivation, kBoth, true>(r, part, gate, group);
}
