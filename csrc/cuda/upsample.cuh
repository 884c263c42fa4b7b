// The last layer of SPANV2 in one launch: a 3x3 convolution of two feature maps to 3 s^2 channels,
// stored as pixels.  A thread block computes 32 x Height feature pixels.
#pragma once

#include "map_tile.cuh"
#include "tail.cuh"

namespace espan::cuda {

// UpTiles is that of Tail.  A warp computes four rows of 16 pixels.
template <class T_, int UpTiles_, int Height_>
struct Upsample {
  using T = T_;
  static constexpr int kUpTiles = UpTiles_, kHeight = Height_, kWidth = 32, kRows = 4;
  static constexpr int kRowWarps = kHeight / kRows, kThreads = 64 * kRowWarps;
  // Of `last` and `near` together, whose channels are next to each other.
  static constexpr int shared_bytes(int channels) {
    return (kHeight + 2) * (kWidth + 2) * channels * 2;
  }
};

// Calls f with each instance, of each UpTiles the larger first.  The smaller one fits into the 99
// KB of the smallest GPUs for all numbers of channels, the larger for up to 80.
template <class T, class F>
void for_each_upsample(F f) {
  f(Upsample<T, 2, 16>{});
  f(Upsample<T, 2, 8>{});
  f(Upsample<T, 6, 16>{});
  f(Upsample<T, 6, 8>{});
}

struct UpsampleArguments : TailArguments {
  const uint16_t* near;
  int near_channels, last_channels;
  int items, blocks;  // for upsample_hopper.cuh: segments, blocks <= segments
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) upsample_kernel(const UpsampleArguments p) {
  const uint32_t maps = shared_memory();
  const int thread = threadIdx.x;
  const PixelTile<S> work(p, blockIdx.x, thread);
  const MapTile<S::kWidth + 2> tile{p.near_channels + p.last_channels};
  const auto load = [&](int first, int count, const uint16_t* from) {
    tile.template load<S::kThreads>(maps, first, count, from + work.image * count, work.top - 1,
                                    work.left - 1, S::kHeight + 2, p.height, p.width, thread);
  };
  load(0, p.near_channels, p.near);
  load(p.near_channels, p.last_channels, p.last);
  Strip<S::kRows, S::kUpTiles> strip;
  strip.fill(p.bias, work.at);
  wait_for_copies();
  synchronize();
  const Share rows(work.row_warp, S::kRows, S::kHeight), columns(work.column_warp, 16, S::kWidth);
  tile.template convolve<typename S::T>(strip, maps + rows.begin * tile.row_bytes(), columns.begin,
                                        p.weights, S::kUpTiles / 2, work.at);
  if (work.store(strip, rows, columns) && p.flag != nullptr) store_global(p.flag, 1);
}

}  // namespace espan::cuda
