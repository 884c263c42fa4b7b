// Shared by spab and tail on Hopper.  A strip of 64 columns is streamed down its rows.  A warpgroup
// computes each convolution with wgmma, and rows pass from one to the next through rings in shared
// memory, so that each row is computed once.
//
// An input row is multiplied once: one product of N = 3 x outputs covers the three vertical taps,
// and the accumulators rotate among the three output rows that it contributes to.  A comes from
// registers, so that activations can have the layout that suits ldmatrix and cp.async (Tile).  If
// wgmma read them from shared memory, it would need planes of 8 channels, and cp.async would occupy
// the shared memory port for 32 cycles to fill those with what takes 4 here.  Only the weights go
// through the asynchronous proxy, by bulk copies, so no proxy fence is needed.
//
// A row of 64 x 32 outputs takes 6 products of 48 cycles, and 283 cycles of the shared memory port:
// 96 for A, 144 for the weights, 43 for other loads and stores.
#pragma once

#include "conv.cuh"
#include "hopper.cuh"

namespace espan::cuda {

// A row of a strip of feature maps in shared memory: 64 pixels and two neighbours.
template <int P>
using StreamRow = Tile<P, 66>;

// Slots that one group fills and another empties in turn.  Each slot has a barrier for full and one
// for empty.
template <int kSlots, int kSlotBytes>
struct Ring {
  static constexpr int kBytes = kSlots * kSlotBytes, kBarrierBytes = kSlots * 16;
  uint32_t slots, barriers;
  int at = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ Ring(uint32_t slots, uint32_t barriers)
      : slots(slots), barriers(barriers) {}
  __device__ __forceinline__ void init(int writers, int readers) const {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(barriers + 16 * i, writers);
      barrier_init(barriers + 16 * i + 8, readers);
    }
  }
  __device__ __forceinline__ uint32_t slot() const { return slots + at * kSlotBytes; }
  __device__ __forceinline__ uint32_t full() const { return barriers + 16 * at; }
  __device__ __forceinline__ uint32_t empty() const { return barriers + 16 * at + 8; }
  __device__ __forceinline__ void wait_full() const { barrier_wait(full(), phase); }
  __device__ __forceinline__ void wait_empty() const { barrier_wait(empty(), phase ^ 1); }
  __device__ __forceinline__ void next(int step = 1) {  // at most kSlots
    at += step;
    if (at >= kSlots) {
      at -= kSlots;
      phase ^= 1;
    }
  }
};

// The part of the image that a thread block streams: `rows` rows of at most kValid columns.  S
// defines P and kValid.
template <class S>
struct StreamStrip {
  int height, width;
  int64_t image;  // the first pixel of the image in the batch
  int left, top, rows;
  int lane, pixel, quad;  // the lane computes pixels `pixel` and `pixel` + 8 of each row

  __device__ __forceinline__ StreamStrip(int height, int width, int strips, int segments,
                                         int segment_rows, int block, int thread)
      : height(height), width(width), lane(thread % 32) {
    const int segment = block / strips % segments;
    left = block % strips * S::kValid;
    top = segment * segment_rows;
    rows = height - top < segment_rows ? height - top : segment_rows;
    image = static_cast<int64_t>(block / strips / segments) * height * width;
    pixel = thread / 32 % 4 * 16 + lane / 4;
    quad = lane % 4;
  }
  __device__ __forceinline__ bool inside_rows(int y) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(height);  // also false for y < 0
  }
  __device__ __forceinline__ bool inside_columns(int x) const {
    return static_cast<unsigned>(x) < static_cast<unsigned>(width);
  }
  // The lane's first channel in a group.
  __device__ __forceinline__ int channel(int group) const {
    return group * Group<S::P>::kChannels + quad * (Group<S::P>::kBytes / 2);
  }
  // The index of an element in the feature maps.
  __device__ __forceinline__ int64_t element(int y, int x, int channel) const {
    return (image + static_cast<int64_t>(y) * width + x) * S::P + channel;
  }
};

// Copies rows of 66 pixels of feature maps to shared memory, by one warp, starting at column
// `left`, with zeros outside the image.  The lanes' addresses are computed once: computing them in
// the loop took a warp 1,400 cycles for a row of 32 channels, longer than the tensor cores.
template <class S>
struct RowCopier {
  static constexpr int kChunks = S::P / 8, kCopies = (66 * kChunks + 31) / 32;
  const StreamStrip<S>& strip;
  int64_t left;
  uint32_t inside = 0;  // one bit per copy of the lane

  __device__ __forceinline__ RowCopier(const StreamStrip<S>& strip, int left)
      : strip(strip), left(left) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      if (strip.inside_columns(left + (strip.lane + 32 * i) / kChunks)) inside |= 1u << i;
  }
  __device__ __forceinline__ void copy(uint32_t slot, const uint16_t* maps, int y) const {
    const uint32_t real = strip.inside_rows(y) ? inside : 0;
    const uint16_t* from = maps + strip.element(real != 0 ? y : 0, 0, 0);
    const int64_t first = left * S::P + strip.lane * 8;
    // The swizzle is the same for all of a lane's copies.
    static_assert(32 % kChunks == 0);
    const uint32_t to = slot + StreamRow<S::P>::offset(strip.lane / kChunks, strip.lane % kChunks);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int at = strip.lane + 32 * i;
      const bool take = real >> i & 1;
      if (at < 66 * kChunks)
        copy_async<16>(to + 512 * i, from + (take ? first + 256 * i : 0), take);
    }
  }
};

template <int n>
struct Phase {
  static constexpr int value = n;
};

// A 3x3 convolution from P channels to N on a warpgroup.
template <class T, int P, int N>
struct StreamConv {
  static constexpr int kSteps = 3 * (P / 16), kValues = N / 2;
  // Blocks of N columns in a step's weights.  The three windows of three blocks in 0 2 1 0 2 are
  // the rotations of the taps that the accumulators need.
  static constexpr int kBlocks = 5;
  static constexpr int kStepBytes = kBlocks * N * 32, kBytes = kSteps * kStepBytes;

  float d[3][kValues];  // output row u is in d[u % 3]
  float done[kValues];  // the finished row
  uint32_t a[kSteps][4];
  float bias[N / 4];
  uint64_t weights;
  uint32_t offset[3][P / 16];  // the lane's part of A in a row, for each column of taps

  __device__ __forceinline__ StreamConv(uint32_t weights_address, const float* biases, int thread) {
    const int lane = thread % 32, warp = thread / 32 % 4;
    weights = descriptor(weights_address, kBlocks * N * 16, 128);
#pragma unroll
    for (int dx = 0; dx < 3; ++dx)
#pragma unroll
      for (int k = 0; k < P / 16; ++k)
        offset[dx][k] = StreamRow<P>::offset(warp * 16 + lane % 16 + dx, 2 * k + lane / 16);
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const float2 b = load_global(reinterpret_cast<const float2*>(biases) + 4 * j + lane % 4);
      bias[2 * j] = b.x;
      bias[2 * j + 1] = b.y;
    }
#pragma unroll
    for (int slot = 0; slot < 3; ++slot)
#pragma unroll
      for (int i = 0; i < kValues; ++i) d[slot][i] = bias[i / 4 * 2 + i % 2];
  }

  // Loads A for 16 channels and a column dx of taps.
  __device__ __forceinline__ void load(uint32_t (&to)[4], uint32_t row, int dx, int k) const {
    load_matrix(to, row + offset[dx][k]);
  }
  __device__ __forceinline__ void load(uint32_t row) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) load(a[s], row, s / (P / 16), s % (P / 16));
  }

  // Starts the products of an input row t, t % 3 = kPhase, and those that `extra` adds.
  template <int kPhase, class Extra>
  __device__ __forceinline__ void start(Extra extra) {
    auto& all = reinterpret_cast<float (&)[3 * kValues]>(d);
    registers_fence(all);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const uint64_t window = weights + s * (kStepBytes / 16) + (3 - kPhase) % 3 * N;
      wgmma<T, 3 * N>(all, a[s], window, true);
    }
    extra();
    wgmma_commit();
  }

  // Moves output row t - 2 out of the accumulators.
  template <int kPhase>
  __device__ __forceinline__ void take() {
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      move_out(done[i], d[(kPhase + 1) % 3][i], bias[i / 4 * 2 + i % 2]);
  }
  __device__ __forceinline__ float2 pair(int tile, int high) const {
    return make_float2(done[4 * tile + 2 * high], done[4 * tile + 2 * high + 1]);
  }

  // Processes the input rows in `in`.  load_extra(slot) loads what extra() multiplies, and
  // take_extra() takes its results.  emit(u) processes output row u while the products of a later
  // row run.  The next row's A is loaded as soon as the products are done, so that moving the
  // finished row hides the latency.
  template <class In, class LoadExtra, class Extra, class TakeExtra, class Emit>
  __device__ __forceinline__ void stream(In in, int inputs, int lane, LoadExtra load_extra,
                                         Extra extra, TakeExtra take_extra, Emit emit) {
    const auto load_row = [&] {
      in.wait_full();
      load(in.slot());
      load_extra(in.slot());
    };
    const auto step = [&](auto phase, int t) {
      constexpr int kPhase = decltype(phase)::value;
      auto& all = reinterpret_cast<float (&)[3 * kValues]>(d);
      start<kPhase>(extra);
      synchronize_warp();
      if (lane == 0) barrier_arrive(in.empty());
      in.next();
      if (t >= 3) emit(t - 3);
      wgmma_wait();
      registers_fence(all);
      if (t + 1 < inputs) load_row();
      take<kPhase>();
      take_extra();
    };
    load_row();
#pragma unroll 1
    for (int t = 0; t < inputs; t += 3) {
      step(Phase<0>{}, t);
      if (t + 1 < inputs) step(Phase<1>{}, t + 1);
      if (t + 2 < inputs) step(Phase<2>{}, t + 2);
    }
    emit(inputs - 3);
  }
};

// Starts to copy `bytes` bytes of weights; the phase of `ready` is complete when they have arrived.
__device__ __forceinline__ void load_weights(uint32_t to, const uint4* from, int bytes,
                                             uint32_t ready) {
  barrier_arrive_expect(ready, bytes);
  bulk_copy(to, from, bytes, ready);
}

}  // namespace espan::cuda
