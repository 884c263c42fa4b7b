// From the features to the image in one launch on Hopper: what tail.cuh computes, streamed
// (stream.cuh).  One warpgroup computes the folded concat, another the convolution to pixels, and
// each map has a warp that loads it.  62 of 64 columns are useful.  With 32 channels and s = 4 a
// row takes 360 + 432 cycles of the tensor cores; the 1x1 convolutions, products of N = 32, take 72
// of the 360.  If the convolution of the last block's output is a 1x1 too, the concat has no 3x3,
// and there is room for 64 channels: a row takes 512 + 864 cycles.
#pragma once

#include "pixels.cuh"
#include "stream.cuh"
#include "tail.cuh"

namespace espan::cuda {

template <class T_, int P_, int UpTiles_, int Sides_, int LastKernel_>
struct TailStream {
  using T = T_;
  static constexpr int P = P_, kUpTiles = UpTiles_, kSides = Sides_, kValid = 62;
  static constexpr int kLastKernel = LastKernel_;
  static constexpr int kThreads = 384, kLoaders = 1 + kSides;
  using Fuse = StreamConv<T, P, P, (P > 32)>;
  using Up = StreamConv<T, P, 8 * kUpTiles, (P > 48)>;
  using Row = StreamRow<P>;
  // A slot holds a row of the last block's output, and of every other map the same row, or with a
  // 3x3 the row above it.
  static constexpr bool kFew = P > (kLastKernel == 3 ? 32 : 48);
  using Input = Ring<(kFew ? 3 : 4), (1 + kSides) * Row::kRow>;
  using Inner = Ring<3, Row::kRow>;
  static constexpr int kSide = 2 * P * P, kSideSteps = P / 16;
  static constexpr int kLast = kLastKernel == 3 ? Fuse::kBytes : kSide;
  static constexpr int kUp = kLast + kSides * kSide, kInput = kUp + Up::kBytes;
  static constexpr int kInner = kInput + Input::kBytes, kBarriers = kInner + Inner::kBytes;
  static constexpr int kReady = kBarriers + Input::kBarrierBytes + Inner::kBarrierBytes;
  static constexpr int kSharedBytes = kReady + 2 * 8;
  static constexpr int kGroup = Group<P>::kTiles, kGroups = P / Group<P>::kChannels;
};

template <class T, class F>
void for_each_tail_stream(F f) {
  const auto both = [&](auto one, auto other) {
    f(one);
    f(other);
  };
  both(TailStream<T, 16, 2, 2, 3>{}, TailStream<T, 16, 2, 3, 3>{});
  both(TailStream<T, 16, 6, 2, 3>{}, TailStream<T, 16, 6, 3, 3>{});
  both(TailStream<T, 32, 2, 2, 3>{}, TailStream<T, 32, 2, 3, 3>{});
  both(TailStream<T, 32, 6, 2, 3>{}, TailStream<T, 32, 6, 3, 3>{});
  both(TailStream<T, 48, 2, 2, 3>{}, TailStream<T, 48, 2, 3, 3>{});
  both(TailStream<T, 48, 6, 2, 3>{}, TailStream<T, 48, 6, 3, 3>{});
  // SPANF3, then SPANF.
  both(TailStream<T, 16, 2, 3, 1>{}, TailStream<T, 16, 6, 3, 1>{});
  both(TailStream<T, 32, 2, 3, 1>{}, TailStream<T, 32, 6, 3, 1>{});
  both(TailStream<T, 48, 2, 3, 1>{}, TailStream<T, 48, 6, 3, 1>{});
  both(TailStream<T, 64, 2, 3, 1>{}, TailStream<T, 64, 6, 3, 1>{});
  f(TailStream<T, 32, 6, 2, 1>{});
}

// The 1x1 convolutions of the maps beside the last.  Their products run with those that complete an
// output row, into accumulators of their own.
template <class S>
struct SideProducts {
  uint64_t weights;
  float values[S::Fuse::kValues];
  uint32_t a[S::kSides][S::kSideSteps][4];

  explicit __device__ __forceinline__ SideProducts(uint64_t weights) : weights(weights) {}
  __device__ __forceinline__ void load(const typename S::Fuse& conv, uint32_t slot) {
#pragma unroll
    for (int i = 0; i < S::kSides; ++i)
#pragma unroll
      for (int k = 0; k < S::kSideSteps; ++k)
        conv.load(a[i][k], slot + (1 + i) * S::Row::kRow, 1, k);
  }
  __device__ __forceinline__ void multiply() {
    registers_fence(values);
#pragma unroll
    for (int i = 0; i < S::kSides; ++i)
#pragma unroll
      for (int k = 0; k < S::kSideSteps; ++k)
        wgmma<typename S::T, S::P>(values, a[i][k], weights + (i * S::kSideSteps + k) * (S::P * 2),
                                   i + k > 0);
  }
};

// The convolution to pixels.  Returns whether a value was out of range.
template <class S, class Conv, class In>
__device__ __forceinline__ bool stream_pixels(const StreamStrip<S>& strip, const TailArguments& p,
                                              Conv& conv, In in) {
  const PixelWriter<S::kUpTiles> pixels(p, strip.image, strip.quad);
  const int x = strip.left + strip.pixel;
  const bool own[2] = {x < p.width, strip.pixel + 8 < S::kValid && x + 8 < p.width};
  int64_t place[2] = {pixels.place(strip.top, x), pixels.place(strip.top, x + 8)};
  bool out_of_range = false;
  float done[Conv::kValues];
  const auto take = [&](int j, int high, float& a, float& b, float next_a, float next_b) {
    move_out(done[4 * j + 2 * high], a, next_a);
    move_out(done[4 * j + 2 * high + 1], b, next_b);
  };
  const auto emit = [&](int) {
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      if (!own[high]) continue;
      float values[2 * S::kUpTiles];
#pragma unroll
      for (int j = 0; j < S::kUpTiles; ++j) {
        values[2 * j] = done[4 * j + 2 * high];
        values[2 * j + 1] = done[4 * j + 2 * high + 1];
      }
      out_of_range |= pixels.store(place[high], values);
      place[high] += pixels.row_step;
    }
  };
  NoExtra none;
  conv.stream(in, strip.rows + 2, strip.lane, none, take, emit);
  return out_of_range;
}

template <class S>
struct TailStreamWork : StreamStrip<S> {
  using Base = StreamStrip<S>;
  using Base::channel, Base::inside_columns, Base::inside_rows, Base::lane, Base::left;
  using Base::pixel, Base::quad, Base::rows, Base::top;
  using T = typename S::T;
  using Row = typename S::Row;
  using Done = uint32_t[S::P / 8][2];  // pairs of values of a row
  const TailArguments& p;

  __device__ __forceinline__ TailStreamWork(const TailArguments& p, int block, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, p.rows, block, thread), p(p) {}

  __device__ __forceinline__ void load(typename S::Input ring, int map) const {
    const RowCopier<S> copier(*this, left - 2);
    // Not p.sides[map - 1]: a dynamic index would move the arguments to local memory.
    const uint16_t* maps = map == 0   ? p.last
                           : map == 1 ? p.sides[0]
                           : map == 2 ? p.sides[1]
                                      : p.sides[2];
    const int first = S::kLastKernel == 1 ? top - 1 : top - (map == 0 ? 2 : 3);
    for (int n = 0; n < rows + S::kLastKernel + 1; ++n) {
      ring.wait_empty();
      copier.copy(ring.slot() + map * Row::kRow, maps, first + n);
      copies_arrive(ring.full());
      ring.next();
    }
  }

  // Passes row u of the folded concat on.
  __device__ __forceinline__ void pass_on(const Done& done, int u, typename S::Inner& out) const {
    const bool row_inside = inside_rows(top - 1 + u);
    out.wait_empty();
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int column = pixel + 8 * high;
      // Outside the image the result is zero, as the padding of the next convolution.
      const bool real = row_inside && inside_columns(left - 1 + column);
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g) {
        Lane<S::kGroup> result;
#pragma unroll
        for (int j = 0; j < S::kGroup; ++j) {
          result.pair[j] = real ? done[g * S::kGroup + j][high] : 0;
        }
        const int c = channel(g);
        store_shared(out.slot() + Row::offset(column, c / 8) + c % 8 * 2, result.vector(), true);
      }
    }
    synchronize_warp();
    if (lane == 0) barrier_arrive(out.full());
    out.next();
  }

  // Computes the folded concat, starting one row and one column before the strip.
  __device__ __forceinline__ void fuse(typename S::Fuse& conv, uint32_t side_weights,
                                       typename S::Input in, typename S::Inner out) const {
    SideProducts<S> sides{descriptor(side_weights, S::P * 16, 128)};
    Done done;
    const auto take = [&](int j, int high, float& a, float& b, float next_a, float next_b) {
      float low, up;
      move_out(low, a, next_a);
      move_out(up, b, next_b);
      const float* side = sides.values + 4 * j + 2 * high;
      done[j][high] = T::pack(low + side[0], up + side[1]);
    };
    const auto emit = [&](int u) { pass_on(done, u, out); };
    conv.stream(in, rows + 4, lane, sides, take, emit);
  }

  // The same if all of its convolutions are 1x1.
  __device__ __forceinline__ void fuse_pixels(uint32_t weights_address, typename S::Input in,
                                              typename S::Inner out) const {
    constexpr int kMaps = 1 + S::kSides, kSteps = kMaps * S::kSideSteps;
    const uint64_t weights = descriptor(weights_address, S::P * 16, 128);
    uint32_t offset[S::kSideSteps];  // of the lane's part of A in a row
#pragma unroll
    for (int k = 0; k < S::kSideSteps; ++k)
      offset[k] = Row::offset(pixel / 16 * 16 + lane % 16 + 1, 2 * k + lane / 16);
    float2 bias[S::P / 8];
#pragma unroll
    for (int j = 0; j < S::P / 8; ++j)
      bias[j] = load_global(reinterpret_cast<const float2*>(p.bias) + 4 * j + quad);
    Done done;
    float d[S::P / 2];
#pragma unroll 1
    for (int u = 0; u < rows + 2; ++u) {
      uint32_t a[kSteps][4];
      in.wait_full();
#pragma unroll
      for (int s = 0; s < kSteps; ++s)
        load_matrix(a[s], in.slot() + s / S::kSideSteps * Row::kRow + offset[s % S::kSideSteps]);
      registers_fence(d);
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kSteps; ++s) wgmma<T, S::P>(d, a[s], weights + s * (S::P * 2), s > 0);
      wgmma_commit();
      synchronize_warp();
      if (lane == 0) barrier_arrive(in.empty());
      in.next();
      if (u > 0) pass_on(done, u - 1, out);
      wgmma_wait<0>();
      registers_fence(d);
#pragma unroll
      for (int j = 0; j < S::P / 8; ++j)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          const float* pair = d + 4 * j + 2 * high;
          done[j][high] = T::pack(pair[0] + bias[j].x, pair[1] + bias[j].y);
        }
    }
    pass_on(done, rows + 1, out);
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) tail_stream_kernel(const TailArguments p) {
#ifdef ESPAN_WGMMA
  const int thread = threadIdx.x;
  const uint32_t weights = shared_memory(), ready = weights + S::kReady;
  const typename S::Input input(weights + S::kInput, weights + S::kBarriers);
  const typename S::Inner inner(weights + S::kInner, input.barriers + S::Input::kBarrierBytes);
  if (thread == 0) {
    input.init(32 * S::kLoaders, 4);
    inner.init(4, 4);
    barrier_init(ready, 1);
    barrier_init(ready + 8, 1);
    barrier_init_fence();
  }
  synchronize();
  grid_dependency_launch();
  grid_dependency_wait();
  const int group = uniform(thread / 128);
  if (group == 2) {
    set_registers<false, 56>();
    const int loader = uniform(thread / 32 % 4);
    if (loader >= S::kLoaders) return;
    if (thread % 128 == 0) {
      load_weights(weights, p.weights, S::kUp, ready);
      load_weights(weights + S::kUp, p.weights + S::kUp / 16, S::Up::kBytes, ready + 8);
    }
    synchronize_warp();
    TailStreamWork<S>(p, blockIdx.x, threadIdx.x).load(input, loader);
    return;
  }
  set_registers<true, 224>();
  const TailStreamWork<S> work(p, blockIdx.x, threadIdx.x);
  if (group == 0) {
    if constexpr (S::kLastKernel == 3) {
      typename S::Fuse conv(weights, p.bias, threadIdx.x);
      barrier_wait(ready, 0);
      work.fuse(conv, weights + S::kLast, input, inner);
    } else {
      barrier_wait(ready, 0);
      work.fuse_pixels(weights, input, inner);
    }
  } else {
    typename S::Up conv(weights + S::kUp, p.bias + S::P, threadIdx.x);
    barrier_wait(ready + 8, 0);
    if (stream_pixels(work, p, conv, inner) && p.flag != nullptr) store_global(p.flag, 1);
  }
#endif
}

}  // namespace espan::cuda
