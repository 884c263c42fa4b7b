// The last layer of SPANV2 on Hopper: what upsample.cuh computes, streamed (stream.cuh).  Two
// warpgroups stream segments of their own with the same weights, and each has two warps that load
// its rows.  The two maps lie next to each other in a pixel, so that they are one feature map. With
// 48 + 32 channels a row takes 1080 cycles of the tensor cores.
#pragma once

#include "tail_hopper.cuh"
#include "upsample.cuh"

namespace espan::cuda {

// P is the number of channels of both maps together.
template <class T_, int P_, int UpTiles_>
struct UpsampleStream {
  using T = T_;
  static constexpr int P = P_, kUpTiles = UpTiles_, kValid = 64;
  static constexpr int kGroups = 2, kThreads = 128 * (kGroups + 1);
  using Conv = StreamConv<T, P, 8 * kUpTiles, (P > 96)>;
  using Row = StreamRow<P>;
  // A block may use 227 of an SM's 228 KB; more than six rows do not help.
  static constexpr int kMost = (227 * 1024 - Conv::kBytes - 8) / kGroups / (Row::kRow + 16);
  using Input = Ring<(kMost < 6 ? kMost : 6), Row::kRow>;
  static constexpr int kBarriers = Conv::kBytes + kGroups * Input::kBytes;
  static constexpr int kReady = kBarriers + kGroups * Input::kBarrierBytes;
  static constexpr int kSharedBytes = kReady + 8;
};

template <class T, class F>
void for_each_upsample_stream(F f) {
  // Scales 3 and 4: 32 or 48 channels, and 16 to 64.  No published network has another.
  f(UpsampleStream<T, 48, 6>{});
  f(UpsampleStream<T, 64, 6>{});
  f(UpsampleStream<T, 80, 6>{});
  f(UpsampleStream<T, 96, 6>{});
  f(UpsampleStream<T, 112, 6>{});
}

// Copies the rows of a segment to a ring.  Each of two warps copies about half of the 66 pixels.  A
// lane has the same chunk of 8 channels in all of its pixels, and so the same map.
template <class S>
struct PairCopier {
  static constexpr int kChunks = S::P / 8;
  // Pixels that a warp copies at once, and after how many copies the swizzle repeats.
  static constexpr int kPixels = kChunks <= 4 ? 8 : kChunks <= 8 ? 4 : 2, kKinds = 8 / kPixels;
  static constexpr int kCopies = 34 / kPixels + (34 % kPixels != 0);
  const StreamStrip<S>& strip;
  const uint16_t* map;
  int channels, first, x;  // of the map; the lane's first channel in it, and its first column
  int place[kKinds];
  bool second, busy;

  __device__ __forceinline__ PairCopier(const StreamStrip<S>& strip, const UpsampleArguments& p,
                                        int warp)
      : strip(strip) {
    const int pixel = 32 * warp + strip.lane / kChunks, chunk = strip.lane % kChunks;
    const bool near = 8 * chunk < p.near_channels;
    map = near ? p.near : p.last;
    channels = near ? p.near_channels : p.last_channels;
    first = 8 * chunk - (near ? 0 : p.near_channels);
    x = strip.left - 1 + pixel;
#pragma unroll
    for (int i = 0; i < kKinds; ++i) place[i] = S::Row::offset(pixel + i * kPixels, chunk);
    second = warp == 1;
    busy = strip.lane < kPixels * kChunks;
  }
  __device__ __forceinline__ void copy(uint32_t slot, int y) const {
    const bool row_inside = strip.inside_rows(y);
    const int64_t pixel = strip.image + static_cast<int64_t>(row_inside ? y : 0) * strip.width + x;
    const uint16_t* from = map + pixel * channels + first;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const bool take = row_inside && strip.inside_columns(x + i * kPixels);
      // The first warp has 32 pixels, the second 34.
      const bool wanted = (i + 1) * kPixels <= 32 || (second && own(i));
      if (busy && wanted)
        copy_async<16>(slot + place[i % kKinds] + i / kKinds * (8 * S::P * 2), take ? from : map,
                       take);
      from += kPixels * channels;
    }
  }
  __device__ __forceinline__ bool own(int i) const {
    return strip.lane / kChunks + i * kPixels < 34;
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    upsample_stream_kernel(const UpsampleArguments p) {
#ifdef ESPAN_WGMMA
  const int thread = threadIdx.x, group = uniform(thread / 128), warp = uniform(thread / 32 % 4);
  const uint32_t weights = shared_memory(), ready = weights + S::kReady;
  // The loaders' warps are divided between the groups.
  const int of = group < S::kGroups ? group : warp / 2;
  typename S::Input input(weights + S::Conv::kBytes + of * S::Input::kBytes,
                          weights + S::kBarriers + of * S::Input::kBarrierBytes);
  if (thread % 128 == 0 && group < S::kGroups) input.init(64, 4);
  if (thread == 0) {
    barrier_init(ready, 1);
    barrier_init_fence();
  }
  synchronize();
  grid_dependency_launch();
  grid_dependency_wait();
  if (group == S::kGroups) {
    set_registers<false, 56>();
    if (thread % 128 == 0) load_weights(weights, p.weights, S::Conv::kBytes, ready);
    synchronize_warp();
    for (int item = blockIdx.x + of * p.blocks; item < p.items; item += S::kGroups * p.blocks) {
      const StreamStrip<S> strip(p.height, p.width, p.tiles_x, p.tiles_y, p.rows, item, thread);
      const PairCopier<S> copier(strip, p, warp % 2);
      for (int n = 0; n < strip.rows + 2; ++n) {
        input.wait_empty();
        copier.copy(input.slot(), strip.top - 1 + n);
        copies_arrive(input.full());
        input.next();
      }
    }
    return;
  }
  set_registers<true, 224>();
  bool out_of_range = false;
  barrier_wait(ready, 0);
  for (int item = blockIdx.x + of * p.blocks; item < p.items; item += S::kGroups * p.blocks) {
    const StreamStrip<S> strip(p.height, p.width, p.tiles_x, p.tiles_y, p.rows, item, thread);
    typename S::Conv conv(weights, p.bias, thread);
    out_of_range |= stream_pixels(strip, p, conv, input);
    for (int n = 0; n < strip.rows + 2; ++n) input.next();
  }
  if (out_of_range && p.flag != nullptr) store_global(p.flag, 1);
#endif
}

}  // namespace espan::cuda
