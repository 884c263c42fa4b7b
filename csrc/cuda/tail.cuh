// From the features to the image in one launch: a 3x3 convolution of the last block's output plus
// 1x1 convolutions of the other inputs of the concat, then a 3x3 convolution to 3 s^2 channels,
// stored as pixels.  A thread block computes 30 x Height feature pixels, and s x s image pixels for
// each.  In some networks the convolution of the last block's output is a 1x1 too.
//
// The 1x1 convolutions come first.  Their input pixels are used once, so each lane reads its own 8
// or 16 bytes directly from device memory, as rows of the mma's A (the weights' rows are permuted
// to match), while the last block's output is copied to shared memory.
#pragma once

#include "conv.cuh"

namespace espan::cuda {

struct TailArguments {
  const uint16_t* last;
  const uint16_t* sides[3];
  int side_count;
  int last_kernel;  // 3, or 1: `last` is then the first of the 1x1 convolutions
  const uint4* weights;
  const float* bias;
  void* image;  // uint8: (N, s H, s W, 3); others: (N, 3, s H, s W)
  int* flag;    // or null
  Image type;
  int scale, height, width, tiles_x, tiles_y;
  int rows;  // per tile, for the streamed kernel
};

// UpTiles is 2 for s = 1, 2 and 6 for s = 3, 4; the other parameters are those of Spab.  Two blocks
// of 4 warps fit into an SM's registers, and into its shared memory if that is large.
template <class T_, int P_, int UpTiles_, int Height_, int RowWarps_, int ChannelWarps_>
struct Tail {
  using T = T_;
  static constexpr int P = P_, kUpTiles = UpTiles_, kHeight = Height_, kWidth = 30;
  static constexpr int kRowWarps = RowWarps_, kChannelWarps = ChannelWarps_;
  static constexpr int kThreads = 64 * kRowWarps * kChannelWarps;
  static constexpr int kTiles = P / 8 / kChannelWarps;
  using Wide = espan::cuda::Tile<P, kWidth + 4>;
  using Narrow = espan::cuda::Tile<P, kWidth + 2>;
  static constexpr int kSharedBytes = (kHeight + 4) * Wide::kRow + (kHeight + 2) * Narrow::kRow;
  // Rows of a strip of the second convolution, and how many strips a warp computes in turn: a strip
  // of 48 channels and 8 rows would take 192 registers.
  static constexpr int kUpWarps = kRowWarps * kChannelWarps;
  static constexpr int kUpShare = (kHeight + kUpWarps - 1) / kUpWarps;
  static constexpr int kUpRows = kUpTiles == 6 && kUpShare > 4 ? 4 : kUpShare;
  static constexpr int kUpStrips = (kUpShare + kUpRows - 1) / kUpRows;
  // Pairs of output tiles, and 16-byte vectors of weights of the 3x3 and of a 1x1 convolution.
  static constexpr int kPairs = P / 16, kLast = 9 * P * P / 8, kSide = P * P / 8;
  static constexpr int weights(int sides, int last_kernel) {
    return (last_kernel == 3 ? kLast : kSide) + sides * kSide + 9 * P * kUpTiles;
  }
};

// Calls f with each instance, one per P and UpTiles.  All fit into the 99 KB of the smallest GPUs.
template <class T, class F>
void for_each_tail(F f) {
  f(Tail<T, 16, 2, 16, 2, 1>{});
  f(Tail<T, 16, 6, 16, 2, 1>{});
  f(Tail<T, 32, 2, 16, 2, 1>{});
  f(Tail<T, 32, 6, 16, 2, 1>{});
  f(Tail<T, 48, 2, 10, 4, 1>{});
  f(Tail<T, 48, 6, 10, 4, 1>{});
  f(Tail<T, 64, 2, 8, 2, 2>{});
  f(Tail<T, 64, 6, 8, 2, 2>{});
}

// What a block stores: image pixels.
template <class S>
struct PixelTile : Part<S> {
  using Base = Part<S>;
  using Base::at, Base::column_warp, Base::left, Base::top;
  const TailArguments& p;

  __device__ __forceinline__ PixelTile(const TailArguments& p, int block, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, block, thread), p(p) {}

  // Stores a strip that begins at `rows` and `columns` of the tile.  Returns whether a value was
  // out of range.
  template <int kRows>
  __device__ __forceinline__ bool store(const Strip<kRows, S::kUpTiles>& strip, const Share& rows,
                                        const Share& columns) const {
    bool out_of_range = false;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int row = rows.begin + r, column = columns.begin + at.pixel + 8 * high;
        const int y = top + row, x = left + column;
        if (row < rows.own || column < columns.own || y >= p.height || x >= p.width) continue;
        float values[2 * S::kUpTiles];
#pragma unroll
        for (int j = 0; j < S::kUpTiles; ++j) {
          const float2 v = strip.pair(r, j, high);
          values[2 * j] = v.x;
          values[2 * j + 1] = v.y;
        }
        out_of_range |= store_pixels(y, x, values);
      }
    return out_of_range;
  }

  // Of the s x s output pixels of a feature pixel, a lane has one row if s > 2, otherwise the
  // quad-th pixel.  Its values are interleaved r, g, b.
  __device__ __forceinline__ bool store_pixels(int y, int x,
                                               const float (&values)[2 * S::kUpTiles]) const {
    constexpr bool kRow = S::kUpTiles == 6;
    const int s = p.scale, pixels = kRow ? s : 1;
    if (at.quad >= s * s / pixels) return false;
    const int64_t out_y = static_cast<int64_t>(y) * s + (kRow ? at.quad : at.quad / s);
    const int64_t out_x = static_cast<int64_t>(x) * s + (kRow ? 0 : at.quad % s);
    const int64_t out_height = static_cast<int64_t>(p.height) * s;
    const int64_t out_width = static_cast<int64_t>(p.width) * s;
    const int64_t n = this->image / (static_cast<int64_t>(p.height) * p.width);
    constexpr int kMax = kRow ? 4 : 1;
    bool out_of_range = false;
#pragma unroll
    for (int i = 0; i < 3 * kMax; ++i)
      if (i < 3 * pixels) out_of_range |= !(values[i] >= -1 && values[i] <= 2);  // also for NaN

    if (p.type == Image::uint8) {
      uint8_t levels[3 * kMax];
#pragma unroll
      for (int i = 0; i < 3 * kMax; ++i)
        levels[i] = static_cast<uint8_t>(round_to_int(fminf(fmaxf(values[i], 0), 1) * 255));
      uint8_t* to =
          static_cast<uint8_t*>(p.image) + ((n * out_height + out_y) * out_width + out_x) * 3;
      if (kRow && s == 4) {
#pragma unroll
        for (int i = 0; i < 3 * kMax; i += 4)
          if (i + 3 < 3 * kMax)
            store_global(reinterpret_cast<uint32_t*>(to + i),
                         levels[i] | levels[i + 1] << 8 | levels[i + 2] << 16 |
                             static_cast<uint32_t>(levels[i + 3]) << 24);
      } else {
#pragma unroll
        for (int i = 0; i < 3 * kMax; ++i)
          if (i < 3 * pixels) store_global(to + i, levels[i]);
      }
      return out_of_range;
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      const int64_t i = ((n * 3 + c) * out_height + out_y) * out_width + out_x;
      if (p.type == Image::float32)
        store_run<kMax>(static_cast<float*>(p.image) + i, values + c, pixels,
                        [](float v) { return v; });
      else if (p.type == Image::float16)
        store_run<kMax>(static_cast<uint16_t*>(p.image) + i, values + c, pixels,
                        [](float v) { return static_cast<uint16_t>(Float16::pack(v, 0)); });
      else
        store_run<kMax>(static_cast<uint16_t*>(p.image) + i, values + c, pixels,
                        [](float v) { return static_cast<uint16_t>(BFloat16::pack(v, 0)); });
    }
    return out_of_range;
  }

  // Stores `pixels` neighbours of one colour, every third of `values`; 4 are stored at once.
  template <int kMax, class V, class Convert>
  __device__ __forceinline__ static void store_run(V* to, const float* values, int pixels,
                                                   Convert convert) {
    struct alignas(4 * sizeof(V)) Four {
      V v[4];
    };
    if constexpr (kMax == 4) {
      if (pixels == 4) {
        store_global(reinterpret_cast<Four*>(to), Four{{convert(values[0]), convert(values[3]),
                                                        convert(values[6]), convert(values[9])}});
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < kMax; ++i)
      if (i < pixels) store_global(to + i, convert(values[3 * i]));
  }
};

template <class S>
struct TailWork : PixelTile<S> {
  using T = typename S::T;
  using Base = PixelTile<S>;
  using Base::at, Base::channel, Base::channel_warp, Base::column_warp, Base::element;
  using Base::first_pair, Base::inside, Base::inside_rows, Base::left, Base::p, Base::row_warp;
  using Base::top;
  static constexpr int kGroup = Group<S::P>::kTiles;
  using Vector = typename Lane<kGroup>::Vector;
  using Base::Base;

  // Adds the 1x1 convolution of one feature map.  Three rows are loaded at once, with the latency
  // of one.
  template <int kRows>
  __device__ __forceinline__ void add_side(Strip<kRows, S::kTiles>& strip, const uint16_t* side,
                                           const uint4* weights, int strip_y, int strip_x) const {
    constexpr int kAtOnce = 3, kSteps = kGroup / 2;
#pragma unroll 1
    for (int group = 0; group < S::P / Group<S::P>::kChannels; ++group) {
      uint4 b[kSteps][S::kTiles / 2];
#pragma unroll
      for (int u = 0; u < kSteps; ++u)
#pragma unroll
        for (int i = 0; i < S::kTiles / 2; ++i)
          b[u][i] = load_global(weights + ((group * kSteps + u) * S::kPairs + i) * 32 + at.lane);
      const int c = group * Group<S::P>::kChannels + at.quad * (Group<S::P>::kBytes / 2);
      const int y = recompute(strip_y), x = recompute(strip_x) + at.pixel;
      const bool columns_inside[2] = {inside(0, x), inside(0, x + 8)};
      // The index of the lane's first pixel, which may be outside the image.  All pixels share it,
      // since there are not enough registers for separate addresses.
      const int64_t row = static_cast<int64_t>(p.width) * S::P, pixel = element(y, x, c);
#pragma unroll
      for (int first = 0; first < kRows; first += kAtOnce) {
        Lane<kGroup> pixels[kAtOnce][2];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
          for (int high = 0; high < 2; ++high) {
            const bool real = first + i < kRows && inside_rows(y + first + i);
            const int64_t place = pixel + (first + i) * row + high * 8 * S::P;
            pixels[i][high] = real && columns_inside[high]
                                  ? load_global(reinterpret_cast<const Vector*>(side + place))
                                  : Lane<kGroup>::zero();
          }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
          for (int u = 0; u < kSteps; ++u) {
            const uint32_t a[4] = {pixels[i][0].pair[2 * u], pixels[i][1].pair[2 * u],
                                   pixels[i][0].pair[2 * u + 1], pixels[i][1].pair[2 * u + 1]};
            if (first + i < kRows) strip.template multiply_row<T>(first + i, a, b[u]);
          }
      }
    }
  }

  // Stores the folded concat of the tile and one pixel around it in shared memory; zero outside the
  // image.
  __device__ __forceinline__ void fuse(uint32_t last, uint32_t fused) const {
    using Out = typename S::Narrow;
    constexpr int kRows = S::kHeight + 2;
    constexpr int kStripRows = (kRows + S::kRowWarps - 1) / S::kRowWarps;
    const Share rows(row_warp, kStripRows, kRows), columns(column_warp, 16, S::kWidth + 2);
    Strip<kStripRows, S::kTiles> strip;
    strip.fill(p.bias + first_pair() * 16, at);
    const bool wide = p.last_kernel == 3;
    const uint4* sides = p.weights + (wide ? S::kLast - S::kSide : 0) + first_pair() * 32;
#pragma unroll 1
    for (int i = wide; i <= p.side_count; ++i)
      // Not p.sides[i - 1]: a dynamic index would move the arguments to local memory.
      add_side(strip,
               i == 0   ? p.last
               : i == 1 ? p.sides[0]
               : i == 2 ? p.sides[1]
                        : p.sides[2],
               sides + i * S::kSide, top - 1 + rows.begin, left - 1 + columns.begin);
    if (wide) {
      wait_for_copies();
      synchronize();
      strip.template convolve<T, S::P, S::kWidth + 4>(last + rows.begin * S::Wide::kRow,
                                                      columns.begin, p.weights + first_pair() * 32,
                                                      S::kPairs, at);
    }
    const int tile_top = recompute(top), tile_left = recompute(left);
#pragma unroll
    for (int r = 0; r < kStripRows; ++r) {
      const int row = rows.begin + r;
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int column = columns.begin + at.pixel + 8 * high;
        const bool real = inside(tile_top - 1 + row, tile_left - 1 + column);
#pragma unroll
        for (int g = 0; g < S::kTiles / kGroup; ++g) {
          Lane<kGroup> lane;
#pragma unroll
          for (int j = 0; j < kGroup; ++j) {
            const float2 v = strip.pair(r, g * kGroup + j, high);
            lane.pair[j] = real ? T::pack(v.x, v.y) : 0;
          }
          const int c = channel(g);
          store_shared(fused + row * Out::kRow + Out::offset(column, c / 8) + c % 8 * 2,
                       lane.vector(), row >= rows.own && column >= columns.own);
        }
      }
    }
  }

  // The convolution to pixels.  Returns whether a value was out of range.
  __device__ __forceinline__ bool upsample(uint32_t fused) const {
    const int last = p.last_kernel == 3 ? S::kLast : S::kSide;
    const uint4* weights = p.weights + last + p.side_count * S::kSide;
    const Share columns(column_warp, 16, S::kWidth);
    bool out_of_range = false;
#pragma unroll 1
    for (int i = 0; i < S::kUpStrips; ++i) {
      const int part = (channel_warp * S::kRowWarps + row_warp) * S::kUpStrips + i;
      const Share rows(part, S::kUpRows, S::kHeight);
      Strip<S::kUpRows, S::kUpTiles> strip;
      strip.fill(p.bias + S::P, at);
      strip.template convolve<T, S::P, S::kWidth + 2>(fused + rows.begin * S::Narrow::kRow,
                                                      columns.begin, weights, S::kUpTiles / 2, at);
      out_of_range |= this->store(strip, rows, columns);
    }
    return out_of_range;
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) tail_kernel(const TailArguments p) {
  const uint32_t last = shared_memory(), fused = last + (S::kHeight + 4) * S::Wide::kRow;
  const int thread = threadIdx.x;
  const TailWork<S> work(p, blockIdx.x, thread);
  if (p.last_kernel == 3)
    load_tile<S::P, S::kWidth + 4, S::kThreads>(last, p.last + work.image * S::P, work.top - 2,
                                                work.left - 2, S::kHeight + 4, p.height, p.width,
                                                thread);
  work.fuse(last, fused);
  synchronize();
  if (work.upsample(fused) && p.flag != nullptr) store_global(p.flag, 1);
}

}  // namespace espan::cuda
