// A whole SPAN block in one launch on Hopper: what spab.cuh computes, streamed (stream.cuh).  Each
// convolution has its own warpgroup, and the warps of a fourth load x, one row each.  60 of 64
// columns are useful, and a segment computes 12 rows of convolutions in addition to its own.
#pragma once

#include "spab.cuh"
#include "stream.cuh"

namespace espan::cuda {

template <class T_, int P_, Activation A_, GateKind G_>
struct SpabStream {
  using T = T_;
  static constexpr int P = P_, kValid = 60;
  static constexpr Activation kActivation = A_;
  static constexpr GateKind kGate = G_;
  static constexpr int kThreads = 512, kLoaders = 4;
  // With 48 channels the taps of three convolutions leave no room for repeated blocks.
  static constexpr bool kWide = P > 32;
  using Conv = StreamConv<T, P, P, kWide>;
  // With 48 channels, fewer of any of these spill.
  static constexpr int kRegisters = kLearned<kGate> ? 152 : 160, kLoaderRegisters = 40;
  static constexpr int kLastRegisters = kLearned<kGate> ? 168 : 152;
  using Row = StreamRow<P>;
  // The row of x for the residual is 9 rows behind the one for the first convolution.  With 48
  // channels, the rows and the weights of a gate take 225 of 227 KB.
  static constexpr bool kShort = kWide && kLearned<kGate>;
  using Input = Ring<(kWide && !kShort ? 11 : 12), Row::kRow>;
  using Inner = Ring<(kShort ? 2 : 3), Row::kRow>;
  // The gate's weights and its bias.
  static constexpr int kGateWeights = 2 * P * P, kGateBytes = kGateWeights + 4 * P;
  static constexpr int kGateAt = 3 * Conv::kBytes;
  static constexpr int kInput = kGateAt + (kLearned<kGate> ? kGateBytes : 0);
  static constexpr int kInner = kInput + Input::kBytes;
  static constexpr int kBarriers = kInner + 2 * Inner::kBytes;
  static constexpr int kReady = kBarriers + Input::kBarrierBytes + 2 * Inner::kBarrierBytes;
  static constexpr int kSharedBytes = kReady + 3 * 8;
  static constexpr int kGroup = Group<P>::kTiles, kGroups = P / Group<P>::kChannels;
  using Vector = typename Lane<kGroup>::Vector;
  static_assert(2 * kRegisters + kLastRegisters + kLoaderRegisters <= 512);
  static_assert(kSharedBytes <= 227 * 1024);
};

// Calls f with each instance: the activations and gates of the networks, for 16, 32 and 48
// channels.
template <class T, Activation A, GateKind G, class F>
void for_each_width(F f) {
  f(SpabStream<T, 16, A, G>{});
  f(SpabStream<T, 32, A, G>{});
  f(SpabStream<T, 48, A, G>{});
}
template <class T, class F>
void for_each_spab_stream(F f) {
  for_each_width<T, Activation::silu, GateKind::sigmoid>(f);
  for_each_width<T, Activation::silu, GateKind::none>(f);
  for_each_width<T, Activation::relu, GateKind::linear>(f);
  for_each_width<T, Activation::relu, GateKind::tanh>(f);
  for_each_width<T, Activation::relu, GateKind::act>(f);
  for_each_width<T, Activation::mish, GateKind::sigmoid>(f);
}

// The gate's 1x1 convolution of a finished row, whose pairs of h are in the layout of A.
template <class S>
struct StreamGate {
  using T = typename S::T;
  static constexpr int kSteps = S::P / 16;
  uint32_t h[S::P / 8][2];
  uint32_t g[S::P / 8][2];
  float d[S::P / 2];
  uint64_t weights;
  uint32_t bias;

  __device__ __forceinline__ StreamGate(uint32_t address, int lane)
      : h{},
        weights(descriptor(address, S::P * 16, 128)),
        bias(address + S::kGateWeights + lane % 4 * 8) {}

  __device__ __forceinline__ void start() {
    registers_fence(reinterpret_cast<uint32_t (&)[S::P / 4]>(h));
    registers_fence(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
      wgmma<T, S::P>(d, reinterpret_cast<const uint32_t (&)[4]>(h[2 * k]), weights + k * (2 * S::P),
                     k > 0);
    wgmma_commit();
  }
  template <int kRunning>
  __device__ __forceinline__ void finish() {
    wgmma_wait<kRunning>();
    registers_fence(d);
#pragma unroll
    for (int j = 0; j < S::P / 8; ++j) {
      uint2 bits;
      load_shared(bias + 32 * j, bits);
      const float2 b = reinterpret_cast<const float2&>(bits);
#pragma unroll
      for (int high = 0; high < 2; ++high)
        g[j][high] = T::pack(d[4 * j + 2 * high] + b.x, d[4 * j + 2 * high + 1] + b.y);
    }
  }
};

// For the gates without one.
template <class S>
struct NoStreamGate : NothingAfter {
  uint32_t h[S::P / 8][2];
  uint32_t g[S::P / 8][2];
  __device__ __forceinline__ NoStreamGate(uint32_t, int) {}
};

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

  // The lane's first value of a pixel in a row, and from there the vector of a group, or of the
  // pixel 8 columns on.  The swizzle is the same there, and for other groups of 16 channels.
  __device__ __forceinline__ uint32_t place(int column) const {
    return Row::offset(column, channel(0) / 8) + channel(0) % 8 * 2;
  }
  static __device__ __forceinline__ uint32_t offset(int high, int g) {
    return high * 8 * Row::kPixel + g * 2 * Group<S::P>::kChannels;
  }

  // A convolution with its activation that is followed by `after` others.
  template <class In>
  __device__ __forceinline__ void activate(typename S::Conv& conv, In in, typename S::Inner out,
                                           int after, uint16_t* activation) const {
    uint32_t done[S::P / 8][2];  // pairs of values of the finished row
    const uint32_t to = place(pixel);
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
            const uint32_t v = activated<T, S::kActivation>(done[g * S::kGroup + j][high]);
            result.pair[j] = real ? v : 0;
          }
          store_shared(out.slot() + to + offset(high, g), result.vector(), true);
          if (activation != nullptr && real && own)
            store_global(reinterpret_cast<Vector*>(activation + element(y, x, channel(g))),
                         result.vector());
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
                                         typename S::Input input, uint32_t gate_weights) const {
    constexpr bool kAdds = kResidual<S::kGate>;
    const bool own[2] = {left + pixel < width, pixel + 8 < S::kValid && left + pixel + 8 < width};
    uint16_t* to = p.y + element(top, left + pixel, channel(0));
    // Pixels that are not stored may be past the end of the row.
    const int last = pixel + 8 + p.convs;
    const uint32_t from[2] = {place(pixel + p.convs), place(last < 66 ? last : 65)};
    if constexpr (kAdds)
      for (int n = 0; n < p.convs; ++n) {  // the rows of x above the segment
        if (lane == 0) barrier_arrive(input.empty());
        input.next();
      }
    std::conditional_t<kLearned<S::kGate>, StreamGate<S>, NoStreamGate<S>> gate(gate_weights, lane);
    const auto emit = [&](int) {
      Vector residual[2][S::kGroups];
      if constexpr (kAdds) {
        input.wait_full();
#pragma unroll
        for (int high = 0; high < 2; ++high)
#pragma unroll
          for (int g = 0; g < S::kGroups; ++g)
            load_shared(input.slot() + from[high] + offset(0, g), residual[high][g]);
      }
      // Values that are not stored are computed too, which avoids branches.
#pragma unroll
      for (int high = 0; high < 2; ++high)
#pragma unroll
        for (int g = 0; g < S::kGroups; ++g) {
          const Lane<S::kGroup> x(residual[high][g]);
          Lane<S::kGroup> result;
#pragma unroll
          for (int j = 0; j < S::kGroup; ++j) {
            const int tile = g * S::kGroup + j;
            result.pair[j] = gated<T, S::kActivation, S::kGate>(gate.h[tile][high], x.pair[j],
                                                                gate.g[tile][high]);
          }
          if (own[high])
            store_global(
                reinterpret_cast<Vector*>(to + high * 8 * S::P + g * Group<S::P>::kChannels),
                result.vector());
        }
      to += static_cast<int64_t>(width) * S::P;
      if constexpr (kAdds) {
        synchronize_warp();
        if (lane == 0) barrier_arrive(input.empty());
        input.next();
      }
    };
    const auto take = [&](int j, int high, float& a, float& b, float next_a, float next_b) {
      gate.h[j][high] = pack_out<T>(a, b, next_a, next_b);
    };
    NoExtra none;
    conv.stream(in, rows + 2, lane, none, gate, take, emit);
  }
};

// Loads the weights of convolution i, with phase 0 of barrier i, and with the last those of the
// gate.
template <class S>
__device__ __forceinline__ void load_all_weights(const SpabArguments& p, uint32_t to,
                                                 uint32_t ready) {
  const uint4* from = p.weights;
#pragma unroll 1
  for (int i = 0; i < p.convs; ++i) {
    const bool gate = kLearned<S::kGate> && i == p.convs - 1;
    barrier_arrive_expect(ready + 8 * i, S::Conv::kBytes + (gate ? S::kGateBytes : 0));
    bulk_copy(to + i * S::Conv::kBytes, from, S::Conv::kBytes, ready + 8 * i);
    from += S::Conv::kBytes / 16;
    if (gate) {
      bulk_copy(to + S::kGateAt, from, S::kGateWeights, ready + 8 * i);
      bulk_copy(to + S::kGateAt + S::kGateWeights, p.bias + p.convs * S::P, 4 * S::P,
                ready + 8 * i);
    }
  }
}

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
    input.init(32, kResidual<S::kGate> ? 8 : 4);
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
    if (thread % 128 == 0) load_all_weights<S>(p, weights, ready);
    synchronize_warp();
    SpabStreamWork<S>(p, blockIdx.x, threadIdx.x).load(input, uniform(threadIdx.x / 32 % 4));
    return;
  }
  // The branches must not join after set_registers: the compiler would allow both the smaller
  // number.
  if (group == 2) {
    set_registers<true, S::kLastRegisters>();
    const int i = p.convs - 1;
    const SpabStreamWork<S> work(p, blockIdx.x, threadIdx.x);
    typename S::Conv conv(weights + i * S::Conv::kBytes, p.bias + i * S::P, threadIdx.x);
    barrier_wait(ready + 8 * i, 0);
    work.finish(conv, second, input, weights + S::kGateAt);
    return;
  }
  set_registers<true, S::kRegisters>();
  const int i = group - (3 - p.convs);  // with two convolutions the first group has none
  if (i < 0) return;
  const SpabStreamWork<S> work(p, blockIdx.x, threadIdx.x);
  typename S::Conv conv(weights + i * S::Conv::kBytes, p.bias + i * S::P, threadIdx.x);
  barrier_wait(ready + 8 * i, 0);
  if (i == 0)
    work.activate(conv, input, p.convs == 3 ? first : second, p.convs - 1, p.activation);
  else
    work.activate(conv, first, second, 1, nullptr);
#endif
}

}  // namespace espan::cuda
