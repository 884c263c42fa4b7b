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
  static constexpr int kChunks = S::P / 8;
  // Pixels that a warp copies at once.  Their number divides 8 or is a multiple of it, so a lane
  // has 8 / kPixels or one kind of chunk: the swizzle of a tile repeats after 8 pixels.
  static constexpr int kPixels = kChunks == 6 ? 4 : 32 / kChunks;
  static constexpr int kKinds = kPixels < 8 ? 8 / kPixels : 1;
  static constexpr int kCopies = (66 + kPixels - 1) / kPixels;
  const StreamStrip<S>& strip;
  int64_t first;        // the index of the lane's first chunk in a row
  uint32_t inside = 0;  // one bit per copy of the lane
  int place[kKinds];

  __device__ __forceinline__ RowCopier(const StreamStrip<S>& strip, int left) : strip(strip) {
    const int pixel = strip.lane / kChunks, chunk = strip.lane % kChunks;
    first = static_cast<int64_t>(left + pixel) * S::P + chunk * 8;
#pragma unroll
    for (int i = 0; i < kKinds; ++i) place[i] = StreamRow<S::P>::offset(pixel + i * kPixels, chunk);
#pragma unroll
    for (int i = 0; i < kCopies; ++i)
      if (strip.inside_columns(left + pixel + i * kPixels)) inside |= 1u << i;
  }
  __device__ __forceinline__ void copy(uint32_t slot, const uint16_t* maps, int y) const {
    const uint32_t real = strip.inside_rows(y) ? inside : 0;
    // Outside the image the address is that of other data, or none; nothing is read from it.
    const uint16_t* from = maps + strip.element(real != 0 ? y : 0, 0, 0) + first;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int pixel = strip.lane / kChunks + i * kPixels;
      if (strip.lane < kPixels * kChunks && pixel < 66)
        copy_async<16>(slot + place[i % kKinds] + i / kKinds * kKinds * kPixels * S::P * 2,
                       from + i * kPixels * S::P, real >> i & 1);
    }
  }
};

template <int n>
struct Phase {
  static constexpr int value = n;
};

// Nothing to multiply besides the convolution.
struct NoExtra {
  template <class Conv>
  __device__ __forceinline__ void load(const Conv&, uint32_t) {}
  __device__ __forceinline__ void multiply() {}
};

// Nothing to multiply after the convolution.
struct NothingAfter {
  __device__ __forceinline__ void start() {}
  template <int kRunning>
  __device__ __forceinline__ void finish() {}
};

// A 3x3 convolution from P channels to N on a warpgroup.  With kApart each vertical tap has its own
// product.
template <class T, int P, int N, bool kApart = false>
struct StreamConv {
  static constexpr int kSteps = 3 * (P / 16), kValues = N / 2;
  // The products of a row run in two groups.  With 48 channels there are registers for the A of one
  // group only.
  static constexpr bool kHalves = P > 32;
  static constexpr int kFirst = kHalves ? (kSteps + 1) / 2 : kSteps / 2;
  static constexpr int kHeld = kHalves ? kFirst : kSteps;
  // Blocks of N columns in a step's weights.  The three windows of three blocks in 0 2 1 0 2 are
  // the rotations of the taps that the accumulators need.
  static constexpr int kBlocks = kApart ? 3 : 5;
  static constexpr int kStepBytes = kBlocks * N * 32, kBytes = kSteps * kStepBytes;

  float d[3][kValues];  // output row u is in d[u % 3]
  uint32_t a[kHeld][4];
  float bias[N / 4];
  uint64_t weights;
  // The lane's part of A in a row, for each column of taps.  The swizzle permutes 16 channels, or
  // 32 if P is 32.
  static constexpr int kOffsets = P == 32 ? 2 : 1;
  uint32_t offset[3][kOffsets];

  __device__ __forceinline__ StreamConv(uint32_t weights_address, const float* biases, int thread) {
    const int lane = thread % 32, warp = thread / 32 % 4;
    weights = descriptor(weights_address, kBlocks * N * 16, 128);
#pragma unroll
    for (int dx = 0; dx < 3; ++dx)
#pragma unroll
      for (int k = 0; k < kOffsets; ++k)
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
    load_matrix(to, row + offset[dx][k % kOffsets] + k / kOffsets * kOffsets * 32);
  }
  // Loads A for the steps [begin, end).
  template <int begin, int end>
  __device__ __forceinline__ void load(uint32_t row) {
#pragma unroll
    for (int s = begin; s < end; ++s) load(a[s % kHeld], row, s / (P / 16), s % (P / 16));
  }

  // Starts the products of the steps [begin, end) of an input row t, t % 3 = kPhase.
  template <int kPhase, int begin, int end>
  __device__ __forceinline__ void start(uint64_t weights) {
    auto& all = reinterpret_cast<float (&)[3 * kValues]>(d);
    registers_fence(all);
    wgmma_fence();
#pragma unroll
    for (int s = begin; s < end; ++s) {
      const uint64_t step = weights + s * (kStepBytes / 16);
      if constexpr (kApart) {
#pragma unroll
        for (int dy = 0; dy < 3; ++dy)
          wgmma<T, N>(d[(kPhase + 3 - dy) % 3], a[s % kHeld], step + dy * N, true);
      } else {
        wgmma<T, 3 * N>(all, a[s % kHeld], step + (3 - kPhase) % 3 * N, true);
      }
    }
  }

  // Processes the input rows in `in`.  Products of a row run in two groups, so that A of the next
  // row can be loaded for the first while the second runs.  With the last steps, extra.multiply()
  // starts products whose A extra.load(slot) has loaded.  take(tile, high, values, bias) takes the
  // lane's pair of values of a finished row and replaces it by the bias; emit(u) processes output
  // row u while the products of a later row run.  Before those, after.start() may start products of
  // what was taken, for which after.finish<n>() waits while n later groups run.
  template <class In, class Extra, class After, class Take, class Emit>
  __device__ __forceinline__ void stream(In in, int inputs, int lane, Extra& extra, After& after,
                                         Take take, Emit emit) {
    const auto load_first = [&] {
      in.wait_full();
      load<0, kFirst>(in.slot());
    };
    const auto load_rest = [&] {
      load<kFirst, kSteps>(in.slot());
      extra.load(*this, in.slot());
    };
    const auto step = [&](auto phase, int t) {
      constexpr int kPhase = decltype(phase)::value;
      auto& all = reinterpret_cast<float (&)[3 * kValues]>(d);
      // The second term is 0.  Without it the compiler keeps up to 27 descriptors in registers.
      const uint64_t at = weights + (static_cast<uint32_t>(inputs >> 31) & t);
      after.start();
      start<kPhase, 0, kFirst>(at);
      wgmma_commit();
      if constexpr (kHalves) {
        after.template finish<1>();
        if (t >= 3) emit(t - 3);
        wgmma_wait<0>();
        load_rest();
      }
      start<kPhase, kFirst, kSteps>(at);
      extra.multiply();
      wgmma_commit();
      synchronize_warp();
      if (lane == 0) barrier_arrive(in.empty());
      in.next();
      if constexpr (!kHalves) {
        after.template finish<2>();
        if (t >= 3) emit(t - 3);
        if (t + 1 < inputs) {
          wgmma_wait<1>();
          load_first();
        }
      }
      wgmma_wait<0>();
      registers_fence(all);
      if (t + 1 < inputs) {
        if constexpr (kHalves)
          load_first();
        else
          load_rest();
      }
#pragma unroll
      for (int j = 0; j < N / 8; ++j)
#pragma unroll
        for (int high = 0; high < 2; ++high) {
          float* const pair = &d[(kPhase + 1) % 3][4 * j + 2 * high];
          take(j, high, pair[0], pair[1], bias[2 * j], bias[2 * j + 1]);
        }
    };
    load_first();
    if constexpr (!kHalves) load_rest();
#pragma unroll 1
    for (int t = 0; t < inputs; t += 3) {
      step(Phase<0>{}, t);
      if (t + 1 < inputs) step(Phase<1>{}, t + 1);
      if (t + 2 < inputs) step(Phase<2>{}, t + 2);
    }
    after.start();
    after.template finish<0>();
    emit(inputs - 3);
  }
  template <class In, class Extra, class Take, class Emit>
  __device__ __forceinline__ void stream(In in, int inputs, int lane, Extra& extra, Take take,
                                         Emit emit) {
    NothingAfter after;
    stream(in, inputs, lane, extra, after, take, emit);
  }
};

// Starts to copy `bytes` bytes of weights; the phase of `ready` is complete when they have arrived.
__device__ __forceinline__ void load_weights(uint32_t to, const uint4* from, int bytes,
                                             uint32_t ready) {
  barrier_arrive_expect(ready, bytes);
  bulk_copy(to, from, bytes, ready);
}

}  // namespace espan::cuda
