// A whole SPAN block in one launch: two or three 3x3 convolutions with SiLU between them, the gate
// and the residual, for a tile of 28 x Height pixels per thread block.
//
// The tile of x with its halo is copied to shared memory.  Each convolution but the last writes the
// input of the next one there, for a region smaller by one pixel on each side.  So only y is
// written to device memory, but neighbouring tiles both compute the halo: 1.29 times the
// multiplications for 28 x 16.  Weights and biases are stored halved, so a strip holds h = o/2, and
//     silu(o) = h + h tanh(h),    (o + x) (sigmoid(o) - 1/2) = (h + x/2) tanh(h):
// one tanh and 1.5 to 2.5 other instructions per value.
#pragma once

#include "conv.cuh"

namespace espan::cuda {

struct SpabArguments {
  const uint16_t* x;
  uint16_t* y;
  uint16_t* activation;  // or null
  const uint4* weights;
  const float* bias;
  int convs, height, width, tiles_x, tiles_y;
  int rows;  // per tile, for the streamed kernel
};

// P channels, Height rows per tile.  A warp computes 16 columns (of at most 32), 1/RowWarps of the
// rows, 1/ChannelWarps of the channels.  An SM is meant to hold BlocksPerSm blocks at once.
template <class T_, int P_, int Height_, int RowWarps_, int ChannelWarps_, int BlocksPerSm_>
struct Spab {
  using T = T_;
  static constexpr int P = P_, kHeight = Height_, kWidth = 28;
  static constexpr int kRowWarps = RowWarps_, kChannelWarps = ChannelWarps_;
  static constexpr int kBlocksPerSm = BlocksPerSm_;
  static constexpr int kThreads = 64 * kRowWarps * kChannelWarps;
  static constexpr int kRows = 3 * kHeight + 6;  // rows of three convolutions
  static constexpr int kTiles = P / 8 / kChannelWarps;
  // For three convolutions, Wide holds x with a halo of 3, later the second activation; Narrow
  // holds the first activation with a halo of 2.
  using Wide = Tile<P, kWidth + 6>;
  using Narrow = Tile<P, kWidth + 4>;
  static constexpr int kSharedBytes = (kHeight + 6) * Wide::kRow + (kHeight + 4) * Narrow::kRow;
  // 16-byte vectors of weights of one convolution, and pairs of output tiles.
  static constexpr int kWeights = 9 * P * P / 8, kPairs = P / 16;
};

// Calls f with each instance.  An instance fits a GPU if the shared memory of an SM has room for
// BlocksPerSm blocks: 228 KB on sm_90 and sm_100, 164 KB on sm_80, 100 KB on the others.  Of those
// that fit, the host picks the one that leaves the fewest SMs idle at the end: on 132 SMs 28 x 16
// is best for 1920 x 1080, 28 x 10 for 510 x 339 (17% fewer rows) and 256 x 256 (33%), 28 x 6 for
// 128 x 128.
template <class T, class F>
void for_each_spab(F f) {
  f(Spab<T, 16, 16, 2, 1, 2>{});
  f(Spab<T, 32, 16, 2, 1, 2>{});
  f(Spab<T, 32, 16, 4, 1, 1>{});
  f(Spab<T, 32, 10, 2, 1, 2>{});
  f(Spab<T, 32, 6, 2, 1, 2>{});
  f(Spab<T, 48, 16, 4, 1, 1>{});
  f(Spab<T, 48, 8, 4, 1, 1>{});
  f(Spab<T, 64, 16, 2, 2, 1>{});
  f(Spab<T, 64, 6, 2, 2, 1>{});
}

// The warp's part of the block.
template <class S>
struct SpabWork : Part<S> {
  using Base = Part<S>;
  using Base::at, Base::channel, Base::column_warp, Base::element, Base::first_pair;
  using Base::inside, Base::left, Base::row_warp, Base::top;
  const SpabArguments& p;

  __device__ __forceinline__ SpabWork(const SpabArguments& p, int block, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, block, thread), p(p) {}

  // The warp's strip of a convolution.
  template <int kStripRows, class In>
  __device__ __forceinline__ Strip<kStripRows, S::kTiles> convolve(uint32_t in, int conv,
                                                                   const Share& rows,
                                                                   const Share& columns) const {
    Strip<kStripRows, S::kTiles> strip;
    strip.fill(p.bias + conv * S::P + first_pair() * 16, at);
    strip.template convolve<typename S::T, S::P, In::kRow / In::kPixel>(
        in + rows.begin * In::kRow, columns.begin,
        p.weights + conv * S::kWeights + first_pair() * 32, S::kPairs, at);
    return strip;
  }

  // A convolution with SiLU from `in` to `out`, for the tile and kHalo pixels around it.  Outside
  // the image the result is zero, as the padding of the next convolution.
  template <int kHalo, class In, class Out>
  __device__ __forceinline__ void activate(uint32_t in, uint32_t out, int conv,
                                           bool with_activation) const {
    constexpr int kRows = S::kHeight + 2 * kHalo, kColumns = S::kWidth + 2 * kHalo;
    constexpr int kStripRows = (kRows + S::kRowWarps - 1) / S::kRowWarps;
    constexpr int kGroup = Group<S::P>::kTiles;
    const Share rows(row_warp, kStripRows, kRows), columns(column_warp, 16, kColumns);
    const auto strip = convolve<kStripRows, In>(in, conv, rows, columns);
#pragma unroll
    for (int r = 0; r < kStripRows; ++r) {
      const int row = rows.begin + r, y = top - kHalo + row;
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int column = columns.begin + at.pixel + 8 * high, x = left - kHalo + column;
        const bool own = row >= rows.own && column >= columns.own;
        const bool real = inside(y, x);
        const bool centre = row >= kHalo && row < kHalo + S::kHeight && column >= kHalo &&
                            column < kHalo + S::kWidth;
#pragma unroll
        for (int g = 0; g < S::kTiles / kGroup; ++g) {
          Lane<kGroup> lane;
#pragma unroll
          for (int j = 0; j < kGroup; ++j) {
            const float2 h = strip.pair(r, g * kGroup + j, high);
            const uint32_t v = activated<typename S::T, Activation::silu>(h);
            lane.pair[j] = real ? v : 0;
          }
          const int c = channel(g);
          store_shared(out + row * Out::kRow + Out::offset(column, c / 8) + c % 8 * 2,
                       lane.vector(), own);
          if (with_activation && own && real && centre)
            store_global(
                reinterpret_cast<typename Lane<kGroup>::Vector*>(p.activation + element(y, x, c)),
                lane.vector());
        }
      }
    }
  }

  // The last convolution, gate and residual, from `in` to y.  Each lane copies its own part of x to
  // `residual` while the convolution runs, so the copy needs no barrier.
  template <class In>
  __device__ __forceinline__ void finish(uint32_t in, uint32_t residual, int conv) const {
    constexpr int kStripRows = (S::kHeight + S::kRowWarps - 1) / S::kRowWarps;
    constexpr int kGroup = Group<S::P>::kTiles, kGroups = S::kTiles / kGroup;
    constexpr int kBytes = Group<S::P>::kBytes;
    static_assert(kStripRows * 2 * kGroups * kBytes * S::kThreads <=
                  (S::kHeight + 4) * S::Narrow::kRow);
    const Share rows(row_warp, kStripRows, S::kHeight), columns(column_warp, 16, S::kWidth);

    // Calls f(r, high, g, index in x and y, address in `residual`) for each of the lane's vectors.
    const auto for_each = [&](auto f) {
      const int tile_top = recompute(top), tile_left = recompute(left);
#pragma unroll
      for (int r = 0; r < kStripRows; ++r)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const int row = rows.begin + r, column = columns.begin + at.pixel + 8 * high;
          const int y = tile_top + row, x = tile_left + column;
          const bool own = row >= rows.own && column >= columns.own && y < p.height && x < p.width;
#pragma unroll
          for (int g = 0; g < kGroups; ++g) {
            const int slot = (r * 2 + high) * kGroups + g;
            if (own)
              f(r, high, g, element(y, x, channel(g)), residual + slot * S::kThreads * kBytes);
          }
        }
    };
    for_each(
        [&](int, int, int, int64_t i, uint32_t slot) { copy_async<kBytes>(slot, p.x + i, true); });
    const auto strip = convolve<kStripRows, In>(in, conv, rows, columns);
    wait_for_copies();
    for_each([&](int r, int high, int g, int64_t i, uint32_t slot) {
      typename Lane<kGroup>::Vector x;
      load_shared(slot, x);
      Lane<kGroup> lane(x);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const float2 h = strip.pair(r, g * kGroup + j, high), v = S::T::unpack(lane.pair[j]);
        lane.pair[j] = gated<typename S::T, Activation::silu, GateKind::sigmoid>(h, v, v);
      }
      store_global(reinterpret_cast<typename Lane<kGroup>::Vector*>(p.y + i), lane.vector());
    });
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksPerSm) spab_kernel(const SpabArguments p) {
  using Wide = typename S::Wide;
  using Narrow = typename S::Narrow;
  const uint32_t wide = shared_memory(), narrow = wide + (S::kHeight + 6) * Wide::kRow;
  const int thread = threadIdx.x;
  const SpabWork<S> work(p, blockIdx.x, thread);
  const uint16_t* image = p.x + work.image * S::P;
  const bool three = p.convs == 3;
  if (three)
    load_tile<S::P, S::kWidth + 6, S::kThreads>(wide, image, work.top - 3, work.left - 3,
                                                S::kHeight + 6, p.height, p.width, thread);
  else
    load_tile<S::P, S::kWidth + 4, S::kThreads>(narrow, image, work.top - 2, work.left - 2,
                                                S::kHeight + 4, p.height, p.width, thread);
  wait_for_copies();
  synchronize();
  if (three) {
    work.template activate<2, Wide, Narrow>(wide, narrow, 0, p.activation != nullptr);
    synchronize();
  }
  work.template activate<1, Narrow, Wide>(narrow, wide, three ? 1 : 0,
                                          !three && p.activation != nullptr);
  synchronize();
  work.template finish<Wide>(wide, narrow + thread * Group<S::P>::kBytes, three ? 2 : 1);
}

}  // namespace espan::cuda
