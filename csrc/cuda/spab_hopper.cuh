// A whole SPAN block in one launch on Hopper: what spab.cuh computes, streamed (stream.cuh).  Each
// convolution has its own warpgroup, and the warps of a fourth load x, one row each.  60 of 64
// columns are useful, and a segment computes 12 rows of convolutions in addition to its own.
#pragma once

#include "spab.cuh"
#include "stream.cuh"

namespace espan::cuda {

template <class T_, int P_>
struct SpabStream {
  using T = T_;
  static constexpr int P = P_, kValid = 60;
  static constexpr int kThreads = 512, kLoaders = 4;
  // With 48 channels the taps of three convolutions leave no room for repeated blocks.
  using Conv = StreamConv<T, P, P, (P > 32)>;
  // With the 152 of the other groups, these are all registers of an SM.
  static constexpr int kLoaderRegisters = 56;
  using Row = StreamRow<P>;
  // The row of x for the residual is 9 rows behind the one for the first convolution.
  using Input = Ring<(P > 32 ? 11 : 12), Row::kRow>;
  using Inner = Ring<3, Row::kRow>;
  static constexpr int kInput = 3 * Conv::kBytes, kInner = kInput + Input::kBytes;
  static constexpr int kBarriers = kInner + 2 * Inner::kBytes;
  static constexpr int kReady = kBarriers + Input::kBarrierBytes + 2 * Inner::kBarrierBytes;
  static constexpr int kSharedBytes = kReady + 3 * 8;
  static constexpr int kGroup = Group<P>::kTiles, kGroups = P / Group<P>::kChannels;
  using Vector = typename Lane<kGroup>::Vector;
};

template <class T, class F>
void for_each_spab_stream(F f) {
  f(SpabStream<T, 16>{});
  f(SpabStream<T, 32>{});
  f(SpabStream<T, 48>{});
}

template <class S>
struct SpabStreamWork : StreamStrip<S> {
  using Base = StreamStrip<S>;
  using Base::channel, Base::element, Base::inside_columns, Base::inside_rows, Base::lane;
  using Base::left, Base::pixel, Base::rows, Base::top, Base::width;
  using T = typename S::T;
  using Row = typename S::Row;
  using Vector = typename S::Vector;
  const SpabArguments& p;

  __device__ __forceinline__ SpabStreamWork(const SpabArguments& p, int block, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, p.rows, block, thread), p(p) {}

  __device__ __forceinline__ void load(typename S::Input ring, int loader) const {
    const RowCopier<S> copier(*this, left - p.convs);
    ring.next(loader);
    for (int n = loader; n < rows + 2 * p.convs; n += S::kLoaders) {
      ring.wait_empty();
      copier.copy(ring.slot(), p.x, top - p.convs + n);
      copies_arrive(ring.full());
      ring.next(S::kLoaders);
    }
  }

  // A convolution with SiLU that is followed by `after` others.
  template <class In>
  __device__ __forceinline__ void activate(typename S::Conv& conv, In in, typename S::Inner out,
                                           int after, uint16_t* activation) const {
    uint32_t done[S::P / 8][2];  // pairs of halved values of the finished row
    const auto emit = [&](int u) {
      const int y = top - after + u;
      const bool row_inside = inside_rows(y), own_row = u >= after && u < after + rows;
      out.wait_empty();
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int column = pixel + 8 * high, x = left - after + column;
        // Outside the image the result is zero, as the padding of the next convolution.
        const bool real = row_inside && inside_columns(x);
        const bool own = own_row && column >= after && column < after + S::kValid;
#pragma unroll
        for (int g = 0; g < S::kGroups; ++g) {
          Lane<S::kGroup> result;
#pragma unroll
          for (int j = 0; j < S::kGroup; ++j) {
            const uint32_t v = activated<T, Activation::silu>(done[g * S::kGroup + j][high]);
            result.pair[j] = real ? v : 0;
          }
          const int c = channel(g);
          store_shared(out.slot() + Row::offset(column, c / 8) + c % 8 * 2, result.vector(), true);
          if (activation != nullptr && real && own)
            store_global(reinterpret_cast<Vector*>(activation + element(y, x, c)), result.vector());
        }
      }
      synchronize_warp();
      if (lane == 0) barrier_arrive(out.full());
      out.next();
    };
    const auto take = [&](int j, int high, float& a, float& b, float next_a, float next_b) {
      done[j][high] = pack_out<T>(a, b, next_a, next_b);
    };
    NoExtra none;
    conv.stream(in, rows + 2 * after + 2, lane, none, take, emit);
  }

  // The last convolution, gate and residual.
  __device__ __forceinline__ void finish(typename S::Conv& conv, typename S::Inner in,
                                         typename S::Input input) const {
    const bool own[2] = {left + pixel < width, pixel + 8 < S::kValid && left + pixel + 8 < width};
    uint16_t* to = p.y + element(top, left + pixel, channel(0));
    uint32_t from[2][S::kGroups];
#pragma unroll
    for (int high = 0; high < 2; ++high)
#pragma unroll
      for (int g = 0; g < S::kGroups; ++g)
        // Past the end of the row for pixels that are not stored.
        from[high][g] =
            Row::offset(pixel + 8 * high + p.convs, channel(g) / 8) + channel(g) % 8 * 2;
    for (int n = 0; n < p.convs; ++n) {  // the rows of x above the segment
      if (lane == 0) barrier_arrive(input.empty());
      input.next();
    }
    uint32_t done[S::P / 8][2];
    const auto emit = [&](int) {
      input.wait_full();
      Vector residual[2][S::kGroups];
#pragma unroll
      for (int high = 0; high < 2; ++high)
#pragma unroll
        for (int g = 0; g < S::kGroups; ++g)
          load_shared(input.slot() + from[high][g], residual[high][g]);
      // Values that are not stored are computed too, which avoids branches.
#pragma unroll
      for (int high = 0; high < 2; ++high)
#pragma unroll
        for (int g = 0; g < S::kGroups; ++g) {
          Lane<S::kGroup> result(residual[high][g]);
#pragma unroll
          for (int j = 0; j < S::kGroup; ++j)
            result.pair[j] = gated<T, Activation::silu, GateKind::sigmoid>(
                done[g * S::kGroup + j][high], result.pair[j], 0);
          if (own[high])
            store_global(
                reinterpret_cast<Vector*>(to + high * 8 * S::P + g * Group<S::P>::kChannels),
                result.vector());
        }
      to += static_cast<int64_t>(width) * S::P;
      synchronize_warp();
      if (lane == 0) barrier_arrive(input.empty());
      input.next();
    };
    const auto take = [&](int j, int high, float& a, float& b, float next_a, float next_b) {
      done[j][high] = pack_out<T>(a, b, next_a, next_b);
    };
    NoExtra none;
    conv.stream(in, rows + 2, lane, none, take, emit);
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1) spab_stream_kernel(const SpabArguments p) {
#ifdef ESPAN_WGMMA
  const int thread = threadIdx.x;
  const uint32_t weights = shared_memory(), ready = weights + S::kReady;
  const typename S::Input input(weights + S::kInput, weights + S::kBarriers);
  const typename S::Inner first(weights + S::kInner, input.barriers + S::Input::kBarrierBytes);
  const typename S::Inner second(first.slots + S::Inner::kBytes,
                                 first.barriers + S::Inner::kBarrierBytes);
  if (thread == 0) {
    input.init(32, 8);
    first.init(4, 4);
    second.init(4, 4);
    for (int i = 0; i < p.convs; ++i) barrier_init(ready + 8 * i, 1);
    barrier_init_fence();
  }
  synchronize();
  grid_dependency_launch();
  grid_dependency_wait();
  const int group = uniform(thread / 128);
  if (group == 3) {
    set_registers<false, S::kLoaderRegisters>();
    if (thread % 128 == 0)
      for (int i = 0; i < p.convs; ++i)
        load_weights(weights + i * S::Conv::kBytes, p.weights + i * (S::Conv::kBytes / 16),
                     S::Conv::kBytes, ready + 8 * i);
    synchronize_warp();
    SpabStreamWork<S>(p, blockIdx.x, threadIdx.x).load(input, uniform(threadIdx.x / 32 % 4));
    return;
  }
  set_registers<true, 152>();
  const int i = group - (3 - p.convs);  // with two convolutions the first group has none
  if (i < 0) return;
  const SpabStreamWork<S> work(p, blockIdx.x, threadIdx.x);
  typename S::Conv conv(weights + i * S::Conv::kBytes, p.bias + i * S::P, threadIdx.x);
  barrier_wait(ready + 8 * i, 0);
  if (group == 2)
    work.finish(conv, p.convs == 3 ? second : first, input);
  else if (i == 0)
    work.activate(conv, input, first, p.convs - 1, p.activation);
  else
    work.activate(conv, first, second, 1, nullptr);
#endif
}

}  // namespace espan::cuda
