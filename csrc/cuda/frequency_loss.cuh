// The frequency-aware loss in CUDA: pointers and sizes only, so that this file also compiles with
// g++ under the emulator of the tests.
//
// A block of threads takes a tile of 64 x 128 pixels.  It reads the difference image with a halo of
// 4 pixels, reflected at the borders, into shared memory; each thread then owns one 8x8 DCT block,
// which it transforms in its registers, forwards and back, and blurs with its neighbours' pixels.
// Only the signs of d - blurred d go from thread to thread, and so through shared memory.
#pragma once

#include "../frequency_loss.h"
#include "pack.cuh"

#ifndef ESPAN_EMULATOR
#define ESPAN_SHARED_BYTES(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace espan::cuda {

// The accesses to shared memory of which the emulator counts the bank conflicts.
#ifndef ESPAN_EMULATOR
template <class V>
__device__ __forceinline__ V load_shared(const void* from) {
  return *static_cast<const V*>(from);
}
template <class V>
__device__ __forceinline__ void store_shared(void* to, V v) {
  *static_cast<V*>(to) = v;
}
#endif

// 67 KB of shared memory let a data-centre card from sm_90 on hold three blocks at a time, sm_80
// two and the others one: registers are limited only where a third block needs it.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ < 900 || __CUDA_ARCH__ >= 1200)
#define ESPAN_LOSS_RESIDENT 2
#else
#define ESPAN_LOSS_RESIDENT 3
#endif

constexpr int kLossThreads = 128, kLossColumnBlocks = 16, kLossRowBlocks = 8;
constexpr int kLossRows = kLossRowBlocks * kBlock, kLossColumns = kLossColumnBlocks * kBlock;

// Loads of 16 bytes begin 8 pixels before the tile in the 16-bit types.
constexpr int kLossBefore = 8;
constexpr int kLossWide = kLossColumns + 2 * kLossBefore;

struct LossShared {
  float d[kLossRows + 2 * kHalo][kLossWide];
  uint16_t signs[kLossRows + 2 * kBlurRadius][kLossWide];  // bfloat16: 0, 1, 2, 4, exactly
  float below[kBlock - 1][kLossColumns], beside[kLossRows][kBlock];  // gradients of padding
  float sums[3][kLossThreads];

  // In every other 32 floats the fours change places in pairs, so that the 8 lanes that read 16
  // bytes together, 32 bytes apart, find 8 different groups of banks wherever they begin.
  __device__ __forceinline__ static int column(int c) {
    const int u = c + kLossBefore;
    return u ^ (u >> 3 & 4);
  }
  __device__ __forceinline__ float* d_row(int row) { return d[row + kHalo]; }
  __device__ __forceinline__ uint16_t* sign_row(int row) {
    return signs[row + kBlurRadius] + kLossBefore;
  }
};

template <class T>
struct LossArguments {
  const T *sr, *hr;
  T* grad;             // null where only the value is wanted
  const float* scale;  // null with it
  float* sums;         // three of each tile
  Axis vertical, horizontal;
  LossWeights weights;
  bool aligned;  // every row begins on a 16-byte boundary
};

// The part of the image that a block of threads owns.
struct LossTile {
  int height, width, y, x, rows, columns;
};

__device__ __forceinline__ float loss_sign(float v) {
  return fabsf(v) > 0.0f ? copysignf(1.0f, v) : v;  // 0 and not a number stay what they are
}

__device__ __forceinline__ float blurred(float far, float near, float v) {
  return v + kBlur1 * (near - 2.0f * v) + kBlur2 * (far - 2.0f * v);
}

__device__ __forceinline__ bool on_edge(int i, int size) {
  const int at = i < 0 || i >= size ? reflected(i, size) : i;
  return at == 0 || at == size - 1;
}

// The DCT of v[0], v[S], ... v[7 S], and its transpose.
template <int S>
__device__ __forceinline__ void dct(float* v) {
  float a[4], b[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = v[i * S] + v[(7 - i) * S];
    b[i] = v[i * S] - v[(7 - i) * S];
  }
  const float outer = a[0] + a[3], inner = a[1] + a[2], c = a[0] - a[3], d = a[1] - a[2];
  v[0] = kCos4 * (outer + inner);
  v[4 * S] = kCos4 * (outer - inner);
  v[2 * S] = kCos2 * c + kCos6 * d;
  v[6 * S] = kCos6 * c - kCos2 * d;
  v[1 * S] = kCos1 * b[0] + kCos3 * b[1] + kCos5 * b[2] + kCos7 * b[3];
  v[3 * S] = kCos3 * b[0] - kCos7 * b[1] - kCos1 * b[2] - kCos5 * b[3];
  v[5 * S] = kCos5 * b[0] - kCos1 * b[1] + kCos7 * b[2] + kCos3 * b[3];
  v[7 * S] = kCos7 * b[0] - kCos5 * b[1] + kCos3 * b[2] - kCos1 * b[3];
}

template <int S>
__device__ __forceinline__ void dct_transposed(float* v) {
  const float p = kCos4 * (v[0] + v[4 * S]), q = kCos4 * (v[0] - v[4 * S]);
  const float c = kCos2 * v[2 * S] + kCos6 * v[6 * S], d = kCos6 * v[2 * S] - kCos2 * v[6 * S];
  const float a[4] = {p + c, q + d, q - d, p - c};
  const float w1 = v[1 * S], w3 = v[3 * S], w5 = v[5 * S], w7 = v[7 * S];
  const float b[4] = {kCos1 * w1 + kCos3 * w3 + kCos5 * w5 + kCos7 * w7,
                      kCos3 * w1 - kCos7 * w3 - kCos1 * w5 - kCos5 * w7,
                      kCos5 * w1 - kCos1 * w3 + kCos7 * w5 + kCos3 * w7,
                      kCos7 * w1 - kCos5 * w3 + kCos3 * w5 - kCos1 * w7};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[i * S] = a[i] + b[i];
    v[(7 - i) * S] = a[i] - b[i];
  }
}

template <class T>
__device__ __forceinline__ void load_difference(const LossArguments<T>& p, const LossTile& t,
                                                int64_t plane, LossShared& s) {
  using P = Pack<T>;
  constexpr int kPacks = kLossWide / P::kSize;
  for (int i = threadIdx.x; i < (kLossRows + 2 * kHalo) * kPacks; i += kLossThreads) {
    const int row = i / kPacks - kHalo, c = i % kPacks * P::kSize - kLossBefore;
    if (row >= t.rows + kHalo || c >= t.columns + kHalo || c + P::kSize <= -kHalo) continue;
    int y = t.y + row;
    if (y < 0 || y >= t.height) y = reflected(y, t.height);
    const T* sr = p.sr + plane + static_cast<int64_t>(y) * t.width;
    const T* hr = p.hr + plane + static_cast<int64_t>(y) * t.width;
    const int x = t.x + c;
    float* to = s.d_row(row);
    if (p.aligned && x >= 0 && x + P::kSize <= t.width) {
      const P a = *reinterpret_cast<const P*>(sr + x), b = *reinterpret_cast<const P*>(hr + x);
#pragma unroll
      for (int k = 0; k < P::kSize; k += 4)
        store_shared(to + LossShared::column(c + k),
                     make_float4(widen(b.lane[k]) - widen(a.lane[k]),
                                 widen(b.lane[k + 1]) - widen(a.lane[k + 1]),
                                 widen(b.lane[k + 2]) - widen(a.lane[k + 2]),
                                 widen(b.lane[k + 3]) - widen(a.lane[k + 3])));
    } else {
#pragma unroll
      for (int k = 0; k < P::kSize; ++k) {
        const int from = reflected(x + k, t.width);
        to[LossShared::column(c + k)] = widen(hr[from]) - widen(sr[from]);
      }
    }
  }
}

// 8 values of one row, blurred along it.  `at` are the places of columns -4, 0, 4 and 8.
__device__ __forceinline__ void blurred_row(const float* row, const int (&at)[4], float (&out)[8]) {
  float v[16];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float4 four = load_shared<float4>(row + at[i]);
    v[4 * i] = four.x, v[4 * i + 1] = four.y, v[4 * i + 2] = four.z, v[4 * i + 3] = four.w;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] = blurred(v[i + 2] + v[i + 6], v[i + 3] + v[i + 5], v[i + 4]);
}

__device__ __forceinline__ void own_row(const float* row, const int (&at)[4], float (&out)[8]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 four = load_shared<float4>(row + at[1 + i]);
    out[4 * i] = four.x, out[4 * i + 1] = four.y, out[4 * i + 2] = four.z, out[4 * i + 3] = four.w;
  }
}

// One thread's 8x8 pixels.
struct LossBlock {
  int row, column;    // in the tile
  int rows, columns;  // how many of the 8 are inside the image; may be more than 8
  bool edge;          // whether one of them is on the image's edge
  int at[4];          // where LossShared::d has columns -4, 0, 4 and 8

  __device__ __forceinline__ LossBlock(const LossTile& t, int thread)
      : row(thread / kLossColumnBlocks * kBlock), column(thread % kLossColumnBlocks * kBlock) {
    rows = t.height - t.y - row;
    columns = t.width - t.x - column;
    edge = t.y + row == 0 || t.x + column == 0 || rows <= kBlock || columns <= kBlock;
#pragma unroll
    for (int i = 0; i < 4; ++i) at[i] = LossShared::column(column + 4 * i - 4);
  }
};

// The sum of |d - blurred d|; its signs, weighted for the transposed blur, go to s.signs.
template <bool kGradient>
__device__ __forceinline__ float high_frequencies(const LossTile& t, const LossBlock& b,
                                                  LossShared& s) {
  float sum = 0, rows[5][8], counts[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) counts[i] = i < b.columns ? 1.0f : 0.0f;
#pragma unroll
  for (int r = 0; r < 12; ++r) {
    blurred_row(s.d_row(b.row + r - 2), b.at, rows[r % 5]);
    if (r < 4) continue;
    const int row = b.row + r - 4;
    float d[8], high[8], in_row = 0;
    own_row(s.d_row(row), b.at, d);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      high[i] = d[i] - blurred(rows[(r - 4) % 5][i] + rows[r % 5][i],
                               rows[(r - 3) % 5][i] + rows[(r - 1) % 5][i], rows[(r - 2) % 5][i]);
      in_row = fmaf(fabsf(high[i]), counts[i], in_row);
      high[i] = loss_sign(high[i]);
    }
    sum += r - 4 < b.rows ? in_row : 0.0f;
    if (!kGradient) continue;
    if (b.edge) {
      const float weight = on_edge(t.y + row, t.height) ? 2.0f : 1.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        high[i] *= on_edge(t.x + b.column + i, t.width) ? 2 * weight : weight;
    }
    __nv_bfloat162 signs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) signs[i] = __floats2bfloat162_rn(high[2 * i], high[2 * i + 1]);
    uint4 bits;
    memcpy(&bits, signs, sizeof bits);
    store_shared(s.sign_row(row) + b.column, bits);
  }
  return sum;
}

// The signs of the pixels around the tile, two deep.
__device__ __forceinline__ void signs_around(const LossTile& t, LossShared& s) {
  const int wide = t.columns + 2 * kBlurRadius, count = 4 * wide + 4 * t.rows;
  for (int i = threadIdx.x; i < count; i += kLossThreads) {
    const bool along = i < 4 * wide;  // above and below, else to both sides
    const int k = along ? i / wide : (i - 4 * wide) % 4;
    const int outside = k < 2 ? k - 2 : (along ? t.rows : t.columns) + k - 2;
    const int row = along ? outside : (i - 4 * wide) / 4;
    const int c = along ? i % wide - 2 : outside;
    float rows[5];
#pragma unroll
    for (int r = 0; r < 5; ++r) {
      const float* d = s.d_row(row + r - 2);
      const auto at = [&](int j) { return d[LossShared::column(c + j)]; };
      rows[r] = blurred(at(-2) + at(2), at(-1) + at(1), at(0));
    }
    float v = s.d_row(row)[LossShared::column(c)] -
              blurred(rows[0] + rows[4], rows[1] + rows[3], rows[2]);
    v = loss_sign(v);
    if (on_edge(t.y + row, t.height)) v *= 2;
    if (on_edge(t.x + c, t.width)) v *= 2;
    const __nv_bfloat16 sign = __float2bfloat16_rn(v);
    memcpy(s.sign_row(row) + c, &sign, sizeof sign);
  }
}

// The sum of |coefficient|; g becomes the gradient of that sum, without the padding's share.
template <bool kGradient>
__device__ __forceinline__ float dct_block(const LossBlock& b, LossShared& s, float (&g)[8][8]) {
  float sum = 0;
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    own_row(s.d_row(b.row + r), b.at, g[r]);
    dct<1>(g[r]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    dct<8>(&g[0][i]);
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      sum += fabsf(g[r][i]);
      g[r][i] = loss_sign(g[r][i]);
    }
    if (kGradient) dct_transposed<8>(&g[0][i]);
  }
  if (kGradient)
#pragma unroll
    for (int r = 0; r < 8; ++r) dct_transposed<1>(g[r]);
  return sum;
}

// Gradients of pixels that padding has made of others are added to those, rows first.  All threads
// of the block of threads come here or none.
__device__ __forceinline__ void fold_padding(const LossTile& t, const LossBlock& b, bool active,
                                             LossShared& s, float (&g)[8][8]) {
#pragma unroll
  for (int r = 0; r < 8; ++r)
    if (active && r >= b.rows)
#pragma unroll
      for (int i = 0; i < 8; ++i) s.below[b.row + r - (t.height - t.y)][b.column + i] = g[r][i];
  __syncthreads();
  if (active)
    for (int row = t.height - t.y; row < t.rows; ++row) {
      const int to = reflected(t.y + row, t.height) - t.y - b.row;
#pragma unroll
      for (int r = 0; r < 8; ++r)
        if (r == to)
#pragma unroll
          for (int i = 0; i < 8; ++i) g[r][i] += s.below[row - (t.height - t.y)][b.column + i];
    }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (active && i >= b.columns)
#pragma unroll
      for (int r = 0; r < 8; ++r) s.beside[b.row + r][b.column + i - (t.width - t.x)] = g[r][i];
  __syncthreads();
  if (active)
    for (int c = t.width - t.x; c < t.columns; ++c) {
      const int to = reflected(t.x + c, t.width) - t.x - b.column;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i == to)
#pragma unroll
          for (int r = 0; r < 8; ++r) g[r][i] += s.beside[b.row + r][c - (t.width - t.x)];
    }
}

// The pixel term: its sum, and its gradient added to g.
template <bool kGradient>
__device__ __forceinline__ float pixels(const LossBlock& b, bool squared, float weight,
                                        LossShared& s, float (&g)[8][8]) {
  float sum = 0;
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    float d[8], in_row = 0;
    own_row(s.d_row(b.row + r), b.at, d);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float value = squared ? d[i] * d[i] : fabsf(d[i]);
      in_row += i < b.columns ? value : 0.0f;
      if (kGradient) g[r][i] = fmaf(weight, squared ? d[i] : loss_sign(d[i]), g[r][i]);
    }
    sum += r < b.rows ? in_row : 0.0f;
  }
  return sum;
}

// Adds weight (signs - transposed blur of the signs) to g.
__device__ __forceinline__ void high_gradient(const LossTile& t, const LossBlock& b, float weight,
                                              LossShared& s, float (&g)[8][8]) {
  // At the image's edge the signs carry factors 2, which the sum loses again: exact either way.
  const auto scale_edges = [&](float factor) {
    if (!b.edge) return;
#pragma unroll
    for (int r = 0; r < 8; ++r) {
      const float in_row = on_edge(t.y + b.row + r, t.height) ? factor : 1.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i)
        g[r][i] *= on_edge(t.x + b.column + i, t.width) ? in_row * factor : in_row;
    }
  };
  scale_edges(2.0f);
#pragma unroll
  for (int r = 0; r < 12; ++r) {
    const uint16_t* row = s.sign_row(b.row + r - 2) + b.column;
    const uint4 middle = load_shared<uint4>(row);
    const uint32_t words[6] = {
        load_shared<uint32_t>(row - 2), middle.x, middle.y, middle.z, middle.w,
        load_shared<uint32_t>(row + 8)};
    float v[12];
#pragma unroll
    for (int i = 0; i < 6; ++i) {
      v[2 * i] = __uint_as_float(words[i] << 16);
      v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
    constexpr float kDown[5] = {kBlur2, kBlur1, 1 - 2 * (kBlur1 + kBlur2), kBlur1, kBlur2};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float along = blurred(v[i] + v[i + 4], v[i + 1] + v[i + 3], v[i + 2]);
#pragma unroll
      for (int k = 0; k < 5; ++k)
        if (r - k >= 0 && r - k < 8) g[r - k][i] = fmaf(-weight * kDown[k], along, g[r - k][i]);
      if (r >= 2 && r < 10) g[r - 2][i] = fmaf(weight, v[i + 2], g[r - 2][i]);
    }
  }
  scale_edges(0.5f);
}

template <class T>
__device__ __forceinline__ void store_gradient(const LossArguments<T>& p, const LossTile& t,
                                               const LossBlock& b, int64_t plane,
                                               const float (&g)[8][8]) {
  using P = Pack<T>;
#pragma unroll
  for (int r = 0; r < 8; ++r) {
    if (r >= b.rows) continue;
    const int64_t row = plane + static_cast<int64_t>(t.y + b.row + r) * t.width;
    T* to = p.grad + row + t.x + b.column;
    if (p.aligned && b.columns >= kBlock) {
#pragma unroll
      for (int i = 0; i < 8; i += P::kSize) {
        P pack;
#pragma unroll
        for (int k = 0; k < P::kSize; ++k) narrow(g[r][i + k], pack.lane[k]);
        *reinterpret_cast<P*>(to + i) = pack;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < b.columns) narrow(g[r][i], to[i]);
    }
  }
}

template <class T, bool kGradient>
__global__ void __launch_bounds__(kLossThreads, ESPAN_LOSS_RESIDENT)
    frequency_loss_kernel(LossArguments<T> p) {
  ESPAN_SHARED_BYTES(bytes);
  LossShared& s = *reinterpret_cast<LossShared*>(bytes);
  const unsigned per_plane = p.vertical.tiles * p.horizontal.tiles;
  const int tile = blockIdx.x % per_plane;
  const int64_t image = static_cast<int64_t>(p.vertical.size) * p.horizontal.size;
  const int64_t plane = blockIdx.x / per_plane * image;
  const int row = tile / p.horizontal.tiles, column = tile % p.horizontal.tiles;
  const int y = p.vertical.begin(row), x = p.horizontal.begin(column);
  const LossTile t = {p.vertical.size,
                      p.horizontal.size,
                      y,
                      x,
                      p.vertical.begin(row + 1) - y,
                      p.horizontal.begin(column + 1) - x};
  const LossBlock b(t, threadIdx.x);
  const bool active = b.row < t.rows && b.column < t.columns;

  load_difference(p, t, plane, s);
  __syncthreads();

  float sums[3] = {}, g[8][8];
  if (active) sums[1] = high_frequencies<kGradient>(t, b, s);
  if (kGradient) {
    signs_around(t, s);
    __syncthreads();
  }
  if (active) sums[2] = dct_block<kGradient>(b, s, g);
  if (kGradient) {
    if (t.y + t.rows > t.height || t.x + t.columns > t.width) fold_padding(t, b, active, s, g);
    if (active) {
      const float scale = -*p.scale;
#pragma unroll
      for (int r = 0; r < 8; ++r)
#pragma unroll
        for (int i = 0; i < 8; ++i) g[r][i] *= scale * p.weights.dct;
      sums[0] = pixels<true>(b, p.weights.squared, scale * p.weights.pixel, s, g);
      high_gradient(t, b, scale * p.weights.high, s, g);
      store_gradient(p, t, b, plane, g);
    }
  } else if (active) {
    sums[0] = pixels<false>(b, p.weights.squared, 0.0f, s, g);
  }

  // In a fixed order: four threads' sums, then 32 of those.
  const int thread = threadIdx.x;
  for (int k = 0; k < 3; ++k) s.sums[k][thread] = sums[k];
  __syncthreads();
  if (thread < 32)
    for (int k = 0; k < 3; ++k) {
      const float* from = s.sums[k] + thread;
      sums[k] = (from[0] + from[32]) + (from[64] + from[96]);
    }
  __syncthreads();
  if (thread < 32)
    for (int k = 0; k < 3; ++k) s.sums[k][thread] = sums[k];
  __syncthreads();
  if (thread < 3) {
    float sum = 0;
    for (int i = 0; i < 32; ++i) sum += s.sums[thread][i];
    p.sums[static_cast<int64_t>(blockIdx.x) * 3 + thread] = sum;
  }
}

struct LossSumArguments {
  const float* sums;
  int64_t tiles;
  double elements, coefficients;
  double pixel_weight, alpha, beta;
  float *loss, *terms;
};

constexpr int kLossSumThreads = 256;

// The second stage, one block of threads: the sums of all tiles in double, in a fixed order.
__global__ void __launch_bounds__(kLossSumThreads) frequency_loss_sum_kernel(LossSumArguments p) {
  ESPAN_SHARED_BYTES(bytes);
  double (&s)[3][kLossSumThreads] = *reinterpret_cast<double (*)[3][kLossSumThreads]>(bytes);
  const int thread = threadIdx.x;
  for (int k = 0; k < 3; ++k) {
    double sum = 0;
    for (int64_t i = thread; i < p.tiles; i += kLossSumThreads) sum += p.sums[3 * i + k];
    s[k][thread] = sum;
  }
  for (int half = kLossSumThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half)
      for (int k = 0; k < 3; ++k) s[k][thread] += s[k][thread + half];
  }
  if (thread > 0) return;
  const double pixel = s[0][0] / p.elements, high = s[1][0] / p.elements;
  const double dct = s[2][0] / p.coefficients;
  p.terms[0] = static_cast<float>(pixel);
  p.terms[1] = static_cast<float>(high);
  p.terms[2] = static_cast<float>(dct);
  *p.loss = static_cast<float>(p.pixel_weight * pixel + p.alpha * high + p.beta * dct);
}

}  // namespace espan::cuda
