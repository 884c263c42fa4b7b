// Matrix products with the sums in registers.  Included after vec.h, once per instruction set.
//
//   out[t][n] = init[t][n] + sum over k of in[t][k] * weights[k][n]
//
// `t` counts pixels or Winograd tiles, kStep floats apart; `k` runs through the parts of the input.
// Every sum is one chain of multiply-adds in the order of k, so the result does not depend on how
// rows are cut.
//
// T is the type of inputs and weights: float or, where vec_bf16.h is included, a pair of bf16
// values, whose two products count as one.

// Rows whose sums fit into registers beside the weights and one input element: AVX-512 has 32
// registers, AVX2 and SSE have 16.  Indexed by the number of vectors in the width.
constexpr int kMaxVecs = 3;
#if ESPAN_LANES == 16
constexpr int kMaxRows[kMaxVecs + 1] = {0, 14, 14, 9};
#else
constexpr int kMaxRows[kMaxVecs + 1] = {0, 12, 6, 4};
#endif

struct Product {
  int64_t part;      // input elements in each part but the last
  int64_t in_pitch;  // floats from part to part
  int64_t depth;
  int64_t weight_stride;
  int64_t init_plane, init_step;
  int64_t out_plane;
};

inline VecF multiply_add(VecF x, VecF weights, VecF sum) { return sum + x * weights; }

template <int kRows, int kVecs, int kStep, class T>
inline void product_tile(const Product& p, const T* in, const T* weights, const float* init,
                         float* out) {
  VecF sum[kRows][kVecs];
#pragma GCC unroll 16
  for (int t = 0; t < kRows; ++t)
#pragma GCC unroll 3
    for (int n = 0; n < kVecs; ++n) sum[t][n] = load(init + t * p.init_step + n * p.init_plane);
  // do-while loops: GCC would keep two sets of sums for loops that might not run.
  int64_t left = p.depth;
  do {
    const int64_t end = left < p.part ? left : p.part;
    left -= end;
    int64_t k = 0;
    do {
      decltype(load(weights)) w[kVecs];
#pragma GCC unroll 3
      for (int n = 0; n < kVecs; ++n) {
        w[n] = load(weights + n * kLanes);
        __builtin_prefetch(weights + p.depth * p.weight_stride + n * kLanes);
      }
#pragma GCC unroll 16
      for (int t = 0; t < kRows; ++t) {
        const auto x = broadcast(in[t * kStep + k]);
#pragma GCC unroll 3
        for (int n = 0; n < kVecs; ++n) sum[t][n] = multiply_add(x, w[n], sum[t][n]);
      }
      weights += p.weight_stride;
    } while (++k < end);
    in += p.in_pitch;
  } while (left > 0);
#pragma GCC unroll 16
  for (int t = 0; t < kRows; ++t)
#pragma GCC unroll 3
    for (int n = 0; n < kVecs; ++n) {
      store(out + n * p.out_plane + t * kLanes, sum[t][n]);
    }
}

template <int kRows, int kVecs, int kStep, class T>
inline void product_some(int64_t rows, const Product& p, const T* in, const T* weights,
                         const float* init, float* out) {
  if constexpr (kRows > 1)
    if (rows < kRows) return product_some<kRows - 1, kVecs, kStep>(rows, p, in, weights, init, out);
  product_tile<kRows, kVecs, kStep>(p, in, weights, init, out);
}

// All rows of kVecs vectors of the width, in pieces of nearly equal size.
template <int kVecs, int kStep, class T>
inline void product_columns(int64_t rows, const Product& p, const T* in, const T* weights,
                            const float* init, float* out) {
  constexpr int kMax = kMaxRows[kVecs];
  int64_t pieces = (rows + kMax - 1) / kMax;
  for (; pieces > 0; --pieces) {
    const int64_t n = (rows + pieces - 1) / pieces;
    product_some<kMax, kVecs, kStep>(n, p, in, weights, init, out);
    in += n * kStep;
    init += n * p.init_step;
    out += n * kLanes;
    rows -= n;
  }
}

// A width of 4 vectors is computed as 2 + 2, not 3 + 1.
template <int kStep, class T>
inline void product(int64_t rows, int64_t vecs, const Product& p, const T* in, const T* weights,
                    const float* init, float* out) {
  while (vecs > 0) {
    const int64_t now = vecs == 4 ? 2 : vecs < kMaxVecs ? vecs : kMaxVecs;
    if (now == 3)
      product_columns<3, kStep>(rows, p, in, weights, init, out);
    else if (now == 2)
      product_columns<2, kStep>(rows, p, in, weights, init, out);
    else
      product_columns<1, kStep>(rows, p, in, weights, init, out);
    vecs -= now;
    weights += now * kLanes;
    init += now * p.init_plane;
    out += now * p.out_plane;
  }
}
