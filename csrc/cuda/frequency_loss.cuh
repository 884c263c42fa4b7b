// The frequency-aware loss in CUDA.  The kernels take pointers and sizes only, so that the tests
// can also compile this file with g++ and run it in their emulator.
//
// A thread block processes a tile of 64 x 128 pixels, in four passes over shared memory:
//
//   1. the difference image, with a halo of 4 pixels reflected at the borders;
//   2. the signs of d - blurred d, for the tile and two pixels around it: a thread walks down 4
//      columns;
//   3. the DCT of 8x8 blocks and the transposed DCT of the coefficients' signs: columns in a
//      thread's registers, rows on the tensor cores.  The result plus the gradient of the pixel
//      term overwrites the difference;
//   4. the transposed blur of the signs on the tensor cores, and the store of the gradient.
//
// Loops are unrolled no further than register arrays require: the code must fit into the
// instruction cache.
#pragma once

#include <type_traits>

#include "../frequency_loss.h"
#include "loss_fragments.h"
#include "loss_instructions.cuh"
#include "pack.cuh"

namespace espan::cuda {

constexpr int kLossRowBlocks = 8, kLossColumnBlocks = 16;
constexpr int kLossRows = kLossRowBlocks * kBlock, kLossColumns = kLossColumnBlocks * kBlock;
constexpr int kLossWarps = 8, kLossThreads = kLossWarps * 32;
constexpr int kLossResident = 3;  // thread blocks per SM on sm_90: 64 KB of shared memory each, and
                                  // 80 registers per thread
constexpr int kLossRun = 12;      // rows that a thread of pass 2 walks down, a multiple of 4

// sign_pair's result for a positive value: the bits of 1 in bfloat16, read as float16.
constexpr float kSignOne = 1.875f;

// The part of the image that a thread block owns.
struct LossTile {
  int height, width, y, x, rows, columns;
};

struct LossShared {
  static constexpr int kBefore = 8;  // columns of d before the tile, which is aligned to 32 bytes
  static constexpr int kRow = kLossColumns + 2 * kBefore;  // floats from a row of d to the next
  // An odd multiple of 16 bytes, so that ldmatrix has no bank conflicts.
  static constexpr int kSignRow = kLossColumns + 2 * kHalo;

  float d[kLossRows + 2 * kHalo][kRow];
  uint16_t signs[kLossRows + 2 * kBlurRadius][kSignRow];
  LossTile tile;  // in shared memory to save registers between passes
  float sums[3][kLossThreads];

  __device__ __forceinline__ float* d_at(int row, int column) {
    return &d[row + kHalo][column + kBefore];
  }
  __device__ __forceinline__ uint16_t* sign_at(int row, int column) {
    return &signs[row + kBlurRadius][column + kHalo];
  }
};

template <class T>
struct LossArguments {
  const T *sr, *hr;
  T* grad;             // null if only the value is needed
  const float* scale;  // null if grad is
  float* sums;         // three per tile
  Axis vertical, horizontal;
  LossWeights weights;
  bool aligned;  // every row is aligned to 16 bytes
};

#ifndef ESPAN_EMULATOR
__device__ const LossFragments kLossFragments = loss_fragments();
#else
const LossFragments kLossFragments = loss_fragments();
#endif

template <class To, class From>
__device__ __forceinline__ To loss_bits(const From& v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}

__device__ __forceinline__ float half_value(uint16_t bits) {
  return __half2float(loss_bits<__half>(bits));
}
__device__ __forceinline__ uint32_t half_pair(float low, float high) {
  return loss_bits<uint32_t>(__floats2half2_rn(low, high));
}

__device__ __forceinline__ float loss_sign(float v) {
  return fabsf(v) > 0.0f ? copysignf(1.0f, v) : v;  // 0 and NaN are unchanged
}

constexpr uint32_t kNanBits = 0x00400040;  // set in a pair of signs if one of them is NaN

// Like reflected(), but with fewer instructions if i is near [0, n).
__device__ __noinline__ int reflected_near(int i, int n) {
  if (n == 1) return 0;
#pragma unroll 1
  while (i < 0 || i >= n) i = i < 0 ? -i : 2 * (n - 1) - i;
  return i;
}

__device__ __forceinline__ float blurred(float far, float near, float v) {
  return v + kBlur1 * (near - 2.0f * v) + kBlur2 * (far - 2.0f * v);
}

// In a period of the reflected image, pixels on the edge occur once and all others twice.  The
// transposed blur accounts for this by doubling the signs of edge pixels and halving their sums.
// Calls f for each edge row (or column) of the tile and of the pixels around it.
template <class F>
__device__ __forceinline__ void for_edges(int size, int begin, int count, F f) {
  const int step = size < 3 ? 1 : size == 3 ? 2 : size - 1;
#pragma unroll 1
  for (int i = size < 4 ? -kBlurRadius : 0; i < size + kBlurRadius; i += step)
    if (i >= begin - kBlurRadius && i < begin + count + kBlurRadius) f(i - begin);
}
// Whether a row or column inside the image is on the edge.
__device__ __forceinline__ bool on_edge(int i, int size) { return i == 0 || i == max(size - 1, 1); }

__device__ __forceinline__ void dct(float (&v)[8]) {
  float a[4], b[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = v[i] + v[7 - i];
    b[i] = v[i] - v[7 - i];
  }
  const float outer = a[0] + a[3], inner = a[1] + a[2], c = a[0] - a[3], d = a[1] - a[2];
  v[0] = kCos4 * (outer + inner);
  v[4] = kCos4 * (outer - inner);
  v[2] = kCos2 * c + kCos6 * d;
  v[6] = kCos6 * c - kCos2 * d;
  v[1] = kCos1 * b[0] + kCos3 * b[1] + kCos5 * b[2] + kCos7 * b[3];
  v[3] = kCos3 * b[0] - kCos7 * b[1] - kCos1 * b[2] - kCos5 * b[3];
  v[5] = kCos5 * b[0] - kCos1 * b[1] + kCos7 * b[2] + kCos3 * b[3];
  v[7] = kCos7 * b[0] - kCos5 * b[1] + kCos3 * b[2] - kCos1 * b[3];
}

__device__ __forceinline__ void dct_transposed(float (&v)[8]) {
  const float p = kCos4 * (v[0] + v[4]), q = kCos4 * (v[0] - v[4]);
  const float c = kCos2 * v[2] + kCos6 * v[6], d = kCos6 * v[2] - kCos2 * v[6];
  const float a[4] = {p + c, q + d, q - d, p - c};
  const float b[4] = {kCos1 * v[1] + kCos3 * v[3] + kCos5 * v[5] + kCos7 * v[7],
                      kCos3 * v[1] - kCos7 * v[3] - kCos1 * v[5] - kCos5 * v[7],
                      kCos5 * v[1] - kCos1 * v[3] + kCos7 * v[5] + kCos3 * v[7],
                      kCos7 * v[1] - kCos5 * v[3] + kCos3 * v[5] - kCos1 * v[7]};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[i] = a[i] + b[i];
    v[7 - i] = a[i] - b[i];
  }
}

// ---- 1. The difference image

template <class T>
struct LossPacks {
  Pack<T> sr, hr;
};

template <class T>
__device__ __forceinline__ void store_difference(const LossPacks<T>& v, float* to) {
#pragma unroll
  for (int k = 0; k < Pack<T>::kSize; k += 4)
    store_shared("st.shared difference", to + k,
                 make_float4(widen(v.hr.lane[k]) - widen(v.sr.lane[k]),
                             widen(v.hr.lane[k + 1]) - widen(v.sr.lane[k + 1]),
                             widen(v.hr.lane[k + 2]) - widen(v.sr.lane[k + 2]),
                             widen(v.hr.lane[k + 3]) - widen(v.sr.lane[k + 3])));
}

template <class T>
__device__ __forceinline__ LossPacks<T> load_packs(const T* sr, const T* hr) {
  return {loss_bits<Pack<T>>(load_constant(reinterpret_cast<const uint4*>(sr))),
          loss_bits<Pack<T>>(load_constant(reinterpret_cast<const uint4*>(hr)))};
}

template <class T>
__device__ __forceinline__ void load_difference(const LossArguments<T>& p, LossTile t,
                                                int64_t plane, LossShared& s) {
  constexpr int kSize = Pack<T>::kSize;
  const int rows = t.rows + 2 * kHalo;
  // Whether rows consist of whole packs and no pixel is reflected twice.
  const bool straight =
      p.aligned && t.x + t.columns <= t.width && t.width >= 2 * kBlock && t.height >= 2 * kBlock;
  if (!straight) {
#pragma unroll 1
    for (int row = threadIdx.x / 32 - kHalo; row < rows - kHalo; row += kLossWarps) {
      const int64_t at =
          plane + static_cast<int64_t>(reflected_near(t.y + row, t.height)) * t.width;
#pragma unroll 1
      for (int column = static_cast<int>(threadIdx.x % 32) - LossShared::kBefore;
           column < t.columns + LossShared::kBefore; column += 32) {
        const int x = reflected_near(t.x + column, t.width);
        *s.d_at(row, column) = widen(p.hr[at + x]) - widen(p.sr[at + x]);
      }
    }
    return;
  }
  const auto within = [](int i, int n) { return min(abs(i), 2 * (n - 1) - abs(i)); };
  constexpr int kAcross = kLossColumns / kSize, kStep = kLossThreads / kAcross, kBatch = 2;
  const int column = threadIdx.x % kAcross * kSize;
  if (column < t.columns) {
#pragma unroll 1
    for (int i = threadIdx.x / kAcross - kHalo; i < rows - kHalo; i += kBatch * kStep) {
      LossPacks<T> v[kBatch];  // all loads are issued before the first one is used
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int y = within(t.y + min(i + j * kStep, rows - kHalo - 1), t.height);
        const int64_t at = plane + static_cast<int64_t>(y) * t.width + t.x + column;
        v[j] = load_packs<T>(p.sr + at, p.hr + at);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j)
        if (i + j * kStep < rows - kHalo) store_difference(v[j], s.d_at(i + j * kStep, column));
    }
  }
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < 2u * LossShared::kBefore * rows; i += kLossThreads) {
    const int row = i / (2 * LossShared::kBefore) - kHalo;
    int column = i % (2 * LossShared::kBefore) - LossShared::kBefore;
    if (column >= 0) column += t.columns;
    const int y = within(t.y + row, t.height), x = within(t.x + column, t.width);
    const int64_t at = plane + static_cast<int64_t>(y) * t.width + x;
    *s.d_at(row, column) = widen(p.hr[at]) - widen(p.sr[at]);
  }
}

// ---- 2. The signs of d - blurred d

// Processes 4 columns and `rows` rows, a multiple of 4.  Everything is computed from second
// differences, so that a constant d gives exactly 0: with e the differences of neighbours,
// v - blurred v = kBlur2 * ((1 + kBlur1 / kBlur2) (e0 - e-1) + e1 - e-2).
// Returns the sum of |d - blurred d| over the pixels inside the image, with the columns weighted by
// `counted`.
template <bool kGradient>
__device__ __forceinline__ float walk_down(LossTile t, LossShared& s, int column, int row, int rows,
                                           const float (&counted)[4], uint32_t& seen) {
  constexpr float kInner = 1 + kBlur1 / kBlur2;
  // For the last four rows: v - blurred v along the row, divided by kBlur2; and the vertical
  // differences of the values blurred along the row.
  float along[4][4] = {}, down[4][4] = {}, last[4] = {}, sum = 0;
  const unsigned inside = min(t.rows, t.height - t.y);
  const float* from = s.d_at(row - kBlurRadius, column);
  uint16_t* to = s.sign_at(row, column);
  // Reads one more row and computes d - blurred d, divided by kBlur2, for the row two above it.
  const auto advance = [&](int k, float (&high)[4]) {
    const float2 before = load_shared<float2>("ld.shared difference", from - 2);
    const float4 own = load_shared<float4>("ld.shared difference", from);
    const float2 after = load_shared<float2>("ld.shared difference", from + 4);
    from += LossShared::kRow;
    const float v[8] = {before.x, before.y, own.x, own.y, own.z, own.w, after.x, after.y};
    float e[7];
#pragma unroll
    for (int i = 0; i < 7; ++i) e[i] = v[i] - v[i + 1];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      along[k][i] = fmaf(kInner, e[i + 2] - e[i + 1], e[i + 3] - e[i]);
      const float blurred_along = fmaf(-kBlur2, along[k][i], v[i + 2]);
      down[k][i] = last[i] - blurred_along;
      last[i] = blurred_along;
      high[i] = fmaf(kInner, down[(k + 3) % 4][i] - down[(k + 2) % 4][i],
                     down[k][i] - down[(k + 1) % 4][i] + along[(k + 2) % 4][i]);
    }
  };
  float high[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) advance(k, high);  // fills the rings
#pragma unroll 1
  for (int step = 0; step < rows; step += 4) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      advance(k, high);
      float in_row = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) in_row = fmaf(fabsf(high[i]), counted[i], in_row);
      sum += static_cast<unsigned>(row + step + k) < inside ? in_row : 0.0f;
      if (kGradient) {
        const uint32_t low = sign_pair(high[0], high[1]), up = sign_pair(high[2], high[3]);
        seen |= low | up;
        store_shared("st.shared signs", to, make_uint2(low, up));
        to += LossShared::kSignRow;
      }
    }
  }
  return sum * kBlur2;
}

// Processes the whole tile.  Sets `exact` if a value is not finite, since the tensor cores would
// spread it.
template <bool kGradient>
__device__ __forceinline__ float high_frequencies(LossTile t, LossShared& s, bool& exact) {
  constexpr unsigned kAcross = kLossColumns / 4;
  constexpr unsigned kWalks = (kLossRows + 2 * kBlurRadius - 1) / kLossRun + 1;
  constexpr unsigned kBeside = (kLossRows + 2 * kBlurRadius) / 4;
  float sum = 0;
  uint32_t seen = 0;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < kAcross * kWalks + (kGradient ? 2 * kBeside : 0);
       i += kLossThreads) {
    const bool own = i < kAcross * kWalks;
    const int column = own ? i % kAcross * 4 : i % 2 ? t.columns : -4;
    const int row = (own ? i / kAcross * kLossRun : (i - kAcross * kWalks) / 2 * 4) - kBlurRadius;
    const int rows = min(own ? kLossRun : 4, t.rows + kBlurRadius - row);
    if (rows <= 0 || (own && column >= t.columns)) continue;
    float counted[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) counted[k] = own && t.x + column + k < t.width ? 1.0f : 0.0f;
    sum += walk_down<kGradient>(t, s, column, row, rows, counted, seen);
  }
  exact = seen & kNanBits || !(fabsf(sum) <= 3e38f);
  return sum;
}

// A value of d, or of its signs, minus its blur, in the operation order of the reference, so that
// infinity and NaN spread to the same pixels.
__device__ __noinline__ float high_exact(const float* d, const uint16_t* sign) {
  float a0 = 0, a1 = 0, a2 = 0, a3 = 0, along = 0, own = 0;  // a0 to a3, along: blurred along rows
#pragma unroll 1
  for (int k = -2; k <= 2; ++k) {
    float v[5];
#pragma unroll
    for (int i = 0; i < 5; ++i)
      v[i] =
          d ? d[k * LossShared::kRow + i - 2] : half_value(sign[k * LossShared::kSignRow + i - 2]);
    a0 = a1, a1 = a2, a2 = a3, a3 = along;
    along = blurred(v[0] + v[4], v[1] + v[3], v[2]);
    if (k == 0) own = v[2];
  }
  return own - blurred(a0 + along, a1 + a3, a2);
}

template <bool kGradient>
__device__ __forceinline__ float high_frequencies_exact(LossTile t, LossShared& s) {
  float sum = 0;
#pragma unroll 1
  for (int row = threadIdx.x / 32 - kBlurRadius; row < t.rows + kBlurRadius; row += kLossWarps)
#pragma unroll 1
    for (int column = static_cast<int>(threadIdx.x % 32) - kBlurRadius;
         column < t.columns + kBlurRadius; column += 32) {
      const float high = high_exact(s.d_at(row, column), nullptr);
      if (row >= 0 && row < min(t.rows, t.height - t.y) && column >= 0 &&
          column < min(t.columns, t.width - t.x))
        sum += fabsf(high);
      if (kGradient) *s.sign_at(row, column) = static_cast<uint16_t>(sign_pair(high, 0.0f));
    }
  return sum;
}

// Replaces infinities by a large number, which can be split into the two parts of a product.
// Returns infinity if this thread found one, otherwise 0.
__device__ __forceinline__ float without_infinity(LossTile t, LossShared& s) {
  constexpr float kLarge = 0x1p120f;
  float found = 0;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(t.rows * kLossColumns);
       i += kLossThreads) {
    const int row = i / kLossColumns, column = i % kLossColumns;
    float& d = *s.d_at(row, column);
    if (column >= t.columns || !(fabsf(d) > kLarge)) continue;
    d = copysignf(kLarge, d);
    found = INFINITY;
  }
  return found;
}

// Must be called by all threads of a block.
__device__ __forceinline__ void double_edges(LossTile t, LossShared& s) {
  const auto doubled = [](uint16_t* at) {
    __half v;
    memcpy(&v, at, sizeof v);
    v = __hadd(v, v);
    memcpy(at, &v, sizeof v);
  };
  for_edges(t.height, t.y, t.rows, [&](int row) {
#pragma unroll 1
    for (int c = threadIdx.x; c < t.columns + 2 * kBlurRadius; c += kLossThreads)
      doubled(s.sign_at(row, c - kBlurRadius));
  });
  __syncthreads();
  for_edges(t.width, t.x, t.columns, [&](int column) {
#pragma unroll 1
    for (int r = threadIdx.x; r < t.rows + 2 * kBlurRadius; r += kLossThreads)
      doubled(s.sign_at(r - kBlurRadius, column));
  });
  __syncthreads();
}

// ---- 3. The DCT

struct LossSums {
  float pixel, dct;
};

// A warp processes 8 rows and 64 columns.  Lane l has columns 2 l and 2 l + 1, so four lanes share
// a block.
template <bool kGradient>
__device__ __forceinline__ LossSums dct_blocks(LossTile t, LossShared& s, int row, int column,
                                               bool squared, float pixel_weight, float dct_weight) {
  const int lane = threadIdx.x % 32;
  column += 2 * lane;
  const bool active = column < t.columns;
  const int rows = t.height - t.y - row, columns = t.width - t.x - column;  // inside the image
  float* d = s.d_at(row, active ? column : 0);
  float v0[8], v1[8], sum0 = 0, sum1 = 0;
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    const float2 v = load_shared<float2>("ld.shared pairs", d + r * LossShared::kRow);
    v0[r] = v.x, v1[r] = v.y;
    sum0 = fmaf(v.x, v.x, sum0);
    sum1 = fmaf(v.y, v.y, sum1);
  }
  float weight0 = columns > 0 ? pixel_weight : 0.0f, weight1 = columns > 1 ? pixel_weight : 0.0f;
  if (!squared || rows < 8) {  // visits every pixel again and replaces it by its gradient
    sum0 = sum1 = 0;
#pragma unroll 1
    for (int r = 0; active && r < 8; ++r) {
      float* at = d + r * LossShared::kRow;
      const float a = r < rows ? at[0] : 0.0f, b = r < rows ? at[1] : 0.0f;
      const float sign0 = squared ? a : loss_sign(a), sign1 = squared ? b : loss_sign(b);
      sum0 = fmaf(a, sign0, sum0);
      sum1 = fmaf(b, sign1, sum1);
      if (kGradient) at[0] = weight0 * sign0, at[1] = weight1 * sign1;
    }
    weight0 = weight1 = 1;
  }
  dct(v0);
  dct(v1);
  float sum = 0;
  const LossFragments& f = kLossFragments;
  const uint32_t forward[2][2] = {
      {load_constant(&f.forward[0][0][lane]), load_constant(&f.forward[0][1][lane])},
      {load_constant(&f.forward[1][0][lane]), load_constant(&f.forward[1][1][lane])}};
  const uint32_t inverse[2] = {load_constant(&f.inverse[0][lane]),
                               load_constant(&f.inverse[1][lane])};
#pragma unroll
  for (int r = 0; r < 8; r += 2) {
    // Each value is split into two parts of 11 bits; the product of both low parts is below the
    // precision of float32.
    const float v[4] = {v0[r], v0[r + 1], v1[r], v1[r + 1]};
    uint32_t high[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      high[i] = (loss_bits<uint32_t>(v[i]) + 0x1000) & 0xffffe000u;
      rest[i] = loss_bits<uint32_t>(v[i] - loss_bits<float>(high[i]));
    }
    float y[4] = {};
    multiply_tf32(y, rest, forward[0]);
    multiply_tf32(y, high, forward[1]);
    multiply_tf32(y, high, forward[0]);
    sum += (fabsf(y[0]) + fabsf(y[1])) + (fabsf(y[2]) + fabsf(y[3]));
    if (!kGradient) continue;
    const uint32_t even = sign_pair(y[0], y[1]), odd = sign_pair(y[2], y[3]);
    const uint32_t signs[4] = {even, odd, even, odd};
    float x[4] = {};
    multiply(x, signs, inverse);
    v0[r] = x[0], v1[r] = x[1], v0[r + 1] = x[2], v1[r + 1] = x[3];
  }
  if (kGradient) {
    dct_transposed(v0);
    dct_transposed(v1);
    if (active) {
#pragma unroll
      for (int r = 0; r < 8; ++r) {
        float* at = d + r * LossShared::kRow;
        const float2 v = load_shared<float2>("ld.shared pairs", at);
        store_shared("st.shared pairs", at,
                     make_float2(fmaf(weight0, v.x, dct_weight * v0[r]),
                                 fmaf(weight1, v.y, dct_weight * v1[r])));
      }
    }
  }
  if (!active) return {0, 0};
  return {(columns > 0 ? sum0 : 0.0f) + (columns > 1 ? sum1 : 0.0f), sum};
}

// Adds the gradients of padded pixels to those of the pixels that they are copies of, rows first.
// Must be called by all threads of a block.
__device__ __forceinline__ void fold_padding(LossTile t, LossShared& s) {
#pragma unroll 1
  for (int axis = 0; axis < 2; ++axis) {
    const int size = axis ? t.width : t.height, begin = axis ? t.x : t.y;
    const int end = axis ? t.columns : t.rows, lines = axis ? t.rows : t.columns;
    const int along = axis ? 1 : LossShared::kRow, across = axis ? LossShared::kRow : 1;
#pragma unroll 1
    for (int i = threadIdx.x; i < lines; i += kLossThreads)
#pragma unroll 1
      for (int k = size - begin; k < end; ++k)
        s.d_at(0, 0)[i * across + (reflected_near(begin + k, size) - begin) * along] +=
            s.d_at(0, 0)[i * across + k * along];
    __syncthreads();
  }
}

// ---- 4. The gradient

// float32 needs products in two parts of 11 bits each.  For the 16-bit types one part is enough.
template <class T>
constexpr int kLossParts = std::is_same_v<T, float> ? 2 : 1;

// The transposed blur down 16 rows of 8 columns of signs, returned in parts, as A of a product.
template <int kParts>
__device__ __forceinline__ void blur_down(const uint32_t (&weights)[kParts][6], const uint16_t* at,
                                          uint32_t (&out)[kParts][2]) {
  uint32_t signs[4];
  load_transposed(signs, at);
  const uint32_t first[2] = {signs[0], signs[1]};
  float v[4] = {};
#pragma unroll
  for (int part = kParts - 1; part >= 0; --part) {
    const uint32_t (&w)[6] = weights[part];
    const uint32_t a[4] = {w[0], w[1], w[2], w[3]}, b[2] = {w[4], w[5]};
    multiply(v, a, first);
    multiply(v, b, signs[2]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    out[0][i] = half_pair(v[2 * i], v[2 * i + 1]);
    if constexpr (kParts == 2) {
      const float2 high = __half22float2(loss_bits<__half2>(out[0][i]));
      out[1][i] = half_pair(v[2 * i] - high.x, v[2 * i + 1] - high.y);
    }
  }
}

// d += a b over 24 columns, passed as three times 8.
__device__ __forceinline__ void multiply_24(float (&d)[4], const uint32_t (&a0)[2],
                                            const uint32_t (&a1)[2], const uint32_t (&a2)[2],
                                            const uint32_t (&b)[3]) {
  const uint32_t a[4] = {a0[0], a0[1], a1[0], a1[1]}, b01[2] = {b[0], b[1]};
  multiply(d, a, b01);
  multiply(d, a2, b[2]);
}

// A warp computes signs - transposed blur of the signs for 16 rows and the columns [begin, end),
// and adds the gradient of the other terms.  The sum is stored in the output if `straight`,
// otherwise back in s.d.
template <class T>
__device__ __forceinline__ void gradient_strip(const LossArguments<T>& p, LossTile t, LossShared& s,
                                               int64_t plane, float weight, bool straight, int row,
                                               int begin, int end) {
  constexpr int kParts = kLossParts<T>;
  const int lane = threadIdx.x % 32, q = lane % 4;
  uint32_t down[kParts][6], along[kParts][2][3], own[2][3];
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int i = 0; i < 6; ++i) down[part][i] = load_constant(&kLossFragments.down[part][i][lane]);
#pragma unroll
    for (int i = 0; i < 6; ++i)
      along[part][i / 3][i % 3] = load_constant(&kLossFragments.along[part][i / 3][i % 3][lane]);
  }
#pragma unroll
  for (int i = 0; i < 6; ++i)
    own[i / 3][i % 3] = load_constant(&kLossFragments.own[i / 3][i % 3][lane]);

  // The rows that ldmatrix reads: from -2, 6 and 10 for the blur, and the strip's own rows.
  const int matrix = lane / 8;
  const uint16_t* around = s.sign_at(row - 2 + lane % 8 +
                                         (matrix == 0   ? 0
                                          : matrix == 1 ? 8
                                                        : 12),
                                     begin - 4);
  const uint16_t* strip = s.sign_at(row + lane % 16, begin - 4);
  struct alignas(4 * sizeof(T)) Four {
    T lane[4];
  };
  float* rest = s.d_at(row + lane / 4, begin + 4 * q);
  T* to =
      p.grad + plane + static_cast<int64_t>(t.y + row + lane / 4) * t.width + t.x + begin + 4 * q;
  T* to_lower = to + 8 * static_cast<int64_t>(t.width);
  float weights[2];
  bool stored[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int r = row + lane / 4 + 8 * h;
    weights[h] = on_edge(t.y + r, t.height) ? 0.5f * weight : weight;
    stored[h] = r < t.rows && t.y + r < t.height;
  }
  uint32_t blurred_down[3][kParts][2];
  blur_down<kParts>(down, around, blurred_down[0]);
#pragma unroll 1
  for (int column = begin; column < end; column += 16) {
    blur_down<kParts>(down, around + 8, blurred_down[1]);
    blur_down<kParts>(down, around + 16, blurred_down[2]);
    uint32_t signs[4], after[2];
    load_matrices(signs, strip + lane / 16 * 8);
    load_matrices(after, strip + 16);
    const uint32_t own0[2] = {signs[0], signs[1]}, own1[2] = {signs[2], signs[3]};
    around += 16;
    strip += 16;
    float v[2][4] = {};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const auto& b = blurred_down;
      if constexpr (kParts == 2) {
        multiply_24(v[k], b[0][1], b[1][1], b[2][1], along[0][k]);
        multiply_24(v[k], b[0][0], b[1][0], b[2][0], along[1][k]);
      }
      multiply_24(v[k], b[0][0], b[1][0], b[2][0], along[0][k]);
      multiply_24(v[k], own0, own1, after, own[k]);
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < 2; ++i) blurred_down[0][part][i] = blurred_down[2][part][i];

    const int x = column + 4 * q;
    if (t.x + column == 0 || t.x + column + 16 >= t.width)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (on_edge(t.x + x + i, t.width)) {
          v[i / 2][i % 2] *= 0.5f;
          v[i / 2][2 + i % 2] *= 0.5f;
        }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float4 d = load_shared<float4>("ld.shared gradient", rest + h * 8 * LossShared::kRow);
      const float g[4] = {
          fmaf(weights[h], v[0][2 * h], d.x), fmaf(weights[h], v[0][2 * h + 1], d.y),
          fmaf(weights[h], v[1][2 * h], d.z), fmaf(weights[h], v[1][2 * h + 1], d.w)};
      if (straight) {
        Four four;
#pragma unroll
        for (int i = 0; i < 4; ++i) narrow(g[i], four.lane[i]);
        if (stored[h] && x < t.columns) *reinterpret_cast<Four*>(h == 0 ? to : to_lower) = four;
      } else if (stored[h] && x < t.columns) {
        store_shared("st.shared gradient", rest + h * 8 * LossShared::kRow,
                     make_float4(g[0], g[1], g[2], g[3]));
      }
    }
    to_lower += 16;
    rest += 16;
    to += 16;
  }
}

// Does the same for the whole tile, pixel by pixel.
__device__ __forceinline__ void gradient_exact(LossTile t, LossShared& s, float weight) {
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < static_cast<unsigned>(t.rows * kLossColumns);
       i += kLossThreads) {
    const int row = i / kLossColumns, column = i % kLossColumns;
    if (column >= t.columns) continue;
    float w = on_edge(t.y + row, t.height) ? 0.5f * weight : weight;
    if (on_edge(t.x + column, t.width)) w *= 0.5f;
    float& d = *s.d_at(row, column);
    d = fmaf(w, high_exact(nullptr, s.sign_at(row, column)), d);
  }
}

template <class T>
__device__ __forceinline__ void store_gradient(const LossArguments<T>& p, LossTile t, LossShared& s,
                                               int64_t plane) {
#pragma unroll 1
  for (int row = threadIdx.x / 32; row < min(t.rows, t.height - t.y); row += kLossWarps) {
    T* to = p.grad + plane + static_cast<int64_t>(t.y + row) * t.width + t.x;
#pragma unroll 1
    for (int column = threadIdx.x % 32; column < min(t.columns, t.width - t.x); column += 32)
      narrow(*s.d_at(row, column), to[column]);
  }
}

// ---- The kernel

template <class T, bool kGradient>
__global__ void __launch_bounds__(kLossThreads, kLossResident)
    frequency_loss_kernel(LossArguments<T> p) {
  LossShared& s = *reinterpret_cast<LossShared*>(loss_shared_memory());
  const int per_plane = p.vertical.tiles * p.horizontal.tiles;
  const int tile = blockIdx.x % per_plane;
  const int64_t image = static_cast<int64_t>(p.vertical.size) * p.horizontal.size;
  const int64_t plane = blockIdx.x / per_plane * image;
  const int down = tile / p.horizontal.tiles, across = tile % p.horizontal.tiles;
  const int y = p.vertical.begin(down), x = p.horizontal.begin(across);
  s.tile = {p.vertical.size,
            p.horizontal.size,
            y,
            x,
            p.vertical.begin(down + 1) - y,
            p.horizontal.begin(across + 1) - x};  // every thread writes the same values
  const unsigned warp = threadIdx.x / 32;

  load_difference(p, s.tile, plane, s);
  // The tensor cores also read signs that no pass writes; these must be finite.
  if (kGradient && (s.tile.rows < kLossRows || s.tile.columns < kLossColumns))
#pragma unroll 1
    for (int i = threadIdx.x; i < static_cast<int>(sizeof(s.signs) / 4); i += kLossThreads)
      reinterpret_cast<uint32_t*>(s.signs)[i] = 0;
  __syncthreads();

  float sums[3] = {};
  bool exact = false;
  sums[1] = high_frequencies<kGradient>(s.tile, s, exact);
  exact = barrier_any(exact);
  if (exact) {
    sums[1] = high_frequencies_exact<kGradient>(s.tile, s);
    __syncthreads();
    sums[0] = sums[2] = without_infinity(s.tile, s);
    __syncthreads();
  }
  const LossTile t = s.tile;
  if (kGradient &&
      (t.y <= kBlurRadius || t.x <= kBlurRadius || t.y + t.rows + kBlurRadius >= t.height ||
       t.x + t.columns + kBlurRadius >= t.width))
    double_edges(t, s);

  const float scale = kGradient ? -*p.scale : 0.0f;
  const float pixel_weight = scale * p.weights.pixel;
  const float dct_weight = scale * p.weights.dct * (1 / kSignOne);
  LossSums more = {0, 0};
  constexpr unsigned kHalves = kLossColumns / 64;
#pragma unroll 1
  for (unsigned i = warp; i < kLossRowBlocks * kHalves; i += kLossWarps) {
    const int row = i / kHalves * 8, column = i % kHalves * 64;
    if (row >= t.rows || column >= t.columns) continue;
    const LossSums unit =
        dct_blocks<kGradient>(t, s, row, column, p.weights.squared, pixel_weight, dct_weight);
    more.pixel += unit.pixel;
    more.dct += unit.dct;
  }
  sums[0] += more.pixel;
  sums[2] += more.dct;
  if (kGradient) {
    __syncthreads();
    if (t.y + t.rows > t.height || t.x + t.columns > t.width) fold_padding(t, s);
    const float high_weight = -*p.scale * p.weights.hf * (1 / kSignOne);
    const bool straight = p.aligned && t.x + t.columns <= t.width && !exact;
    if (exact) {
      gradient_exact(t, s, high_weight);
    } else {
      constexpr unsigned kStrips = kLossRows / 16, kShares = kLossWarps / kStrips;
      const int row = warp / kShares * 16, begin = warp % kShares * (kLossColumns / kShares);
      static_assert(kStrips * kShares == kLossWarps && kLossColumns / kShares % 16 == 0);
      if (row < t.rows && begin < t.columns)
        gradient_strip(p, t, s, plane, high_weight, straight, row, begin,
                       min(begin + static_cast<int>(kLossColumns / kShares), t.columns));
    }
    if (!straight) {
      __syncthreads();
      store_gradient(p, t, s, plane);
    }
  }

  // Adds in a fixed order: the sums of 8 threads, then 32 of those.
  const int thread = threadIdx.x;
#pragma unroll
  for (int k = 0; k < 3; ++k) s.sums[k][thread] = sums[k];
  __syncthreads();
  if (thread < 96) {
    const float* from = s.sums[thread / 32] + thread % 32;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kLossWarps; ++i) sum += from[32 * i];
    s.sums[thread / 32][thread % 32] = sum;
  }
  __syncthreads();
  if (thread < 3) {
    float sum = 0;
#pragma unroll 1
    for (int i = 0; i < 32; ++i) sum += s.sums[thread][i];
    p.sums[static_cast<int64_t>(blockIdx.x) * 3 + thread] = sum;
  }
}

struct LossSumArguments {
  const float* sums;
  int64_t tiles;
  double elements, coefficients;
  double pixel_weight, hf_weight, dct_weight;
  float *loss, *terms;
};

constexpr int kLossSumThreads = 512, kLossSumBytes = 3 * kLossSumThreads / 32 * sizeof(double);

// The second stage, a single thread block: adds the sums of all tiles in double, in a fixed order.
__global__ void __launch_bounds__(kLossSumThreads) frequency_loss_sum_kernel(LossSumArguments p) {
  auto& s = *reinterpret_cast<double (*)[3][kLossSumThreads / 32]>(loss_shared_memory());
  const int thread = threadIdx.x;
  double sums[3] = {};
#pragma unroll 4
  for (int64_t i = thread; i < p.tiles; i += kLossSumThreads)
#pragma unroll
    for (int k = 0; k < 3; ++k) sums[k] += p.sums[3 * i + k];
#pragma unroll
  for (int k = 0; k < 3; ++k) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) sums[k] += exchange(sums[k], bits);
    if (thread % 32 == 0) s[k][thread / 32] = sums[k];
  }
  __syncthreads();
  if (thread > 0) return;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    sums[k] = 0;
#pragma unroll
    for (int i = 0; i < kLossSumThreads / 32; ++i) sums[k] += s[k][i];
  }
  const double pixel = sums[0] / p.elements, high = sums[1] / p.elements;
  const double dct = sums[2] / p.coefficients;
  p.terms[0] = static_cast<float>(pixel);
  p.terms[1] = static_cast<float>(high);
  p.terms[2] = static_cast<float>(dct);
  *p.loss = static_cast<float>(p.pixel_weight * pixel + p.hf_weight * high + p.dct_weight * dct);
}

}  // namespace espan::cuda
