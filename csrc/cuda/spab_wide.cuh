// A whole SPAN block of 64 channels in one launch on Hopper: what spab.cuh computes, streamed.
//
// The weights of three convolutions are 221 KB, too many for the shared memory of an SM beside the
// rings.  So the operands of stream.cuh are exchanged.  A are weights, two thirds of which stay in
// registers (96 of a thread's 168) and one third in shared memory.  B are the pixels of a row in
// shared memory.  Each convolution has its own warpgroup, which computes an output row of 64 pixels
// from three input rows: 36 products of N = 64, for 9 taps and 4 groups of 16 channels.  They take
// 1,152 cycles of the tensor cores and 768 of the shared memory port; a row's other loads and
// stores take about 130.
//
// The 128 bytes of a pixel are swizzled as wgmma, copies of tensors, ldmatrix and stmatrix access
// them without conflicts.  B may start at any pixel.  A result has its channels in the rows of the
// accumulators, so ldmatrix and stmatrix transpose.  wgmma reads what other warps stored, so a
// proxy fence is needed before a row is passed on.
#pragma once

#include "spab.cuh"
#include "stream.cuh"

namespace espan::cuda {

// A row of pixels of 64 channels in shared memory.
template <int kPixels>
struct WideRow {
  static constexpr int kRow = kPixels * 128;
  static __device__ __forceinline__ uint32_t address(uint32_t row, int pixel, int chunk) {
    const uint32_t at = row + pixel * 128 + chunk * 16;
    return at ^ (at >> 3 & 0x70);
  }
};
constexpr int kSixteenPixels = 16 * 128;  // what they add to an address, swizzled or not

// A ring of rows, each with a barrier for full and one for empty.  Its state is the number of the
// row alone: no register is left for more.
template <int kSlots, int kSlotBytes>
struct WideRing {
  static_assert((kSlots & (kSlots - 1)) == 0);
  static constexpr int kRows = kSlots, kBytes = kSlots * kSlotBytes, kBarrierBytes = kSlots * 16;
  uint32_t slots, barriers;

  __device__ __forceinline__ WideRing(uint32_t slots, uint32_t barriers)
      : slots(slots), barriers(barriers) {}
  __device__ __forceinline__ void init(int writers, int readers) const {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(full(i), writers);
      if (readers > 0) barrier_init(empty(i), readers);
    }
  }
  __device__ __forceinline__ uint32_t slot(int row) const {
    return slots + row % kSlots * kSlotBytes;
  }
  __device__ __forceinline__ uint32_t full(int row) const { return barriers + row % kSlots * 16; }
  __device__ __forceinline__ uint32_t empty(int row) const { return full(row) + 8; }
  __device__ __forceinline__ void wait_full(int row) const {
    barrier_wait(full(row), row / kSlots & 1);
  }
  // Waits until the slot can be filled with this row.
  __device__ __forceinline__ void wait_empty(int row) const {
    barrier_wait(empty(row), (row / kSlots & 1) ^ 1);
  }
};

template <class T_, Activation A_, GateKind G_>
struct SpabWide {
  using T = T_;
  static constexpr Activation kActivation = A_;
  static constexpr GateKind kGate = G_;
  static constexpr int P = 64, kValid = 60, kThreads = 384;
  // Steps of 16 channels and a tap.  Of every three, the weights of the last are in shared memory.
  static constexpr int kSteps = 36, kStepBytes = 64 * 16 * 2, kShared = kSteps / 3;
  static constexpr int kConvVectors = kSteps * kStepBytes / 16, kGateBytes = 4 * kStepBytes;
  // Two pixels beyond the 64 of a product, for the columns of taps.  The residual is read and
  // replaced for 64 pixels from the third or fourth of x.
  using Input = WideRing<8, WideRow<68>::kRow>;
  using Inner = WideRing<4, WideRow<66>::kRow>;
  static constexpr int kCopied = 66 * 128;  // bytes of a row of x
  static constexpr int kConv = kShared * kStepBytes;
  static constexpr int kInput = 3 * kConv, kInner = kInput + Input::kBytes;
  static constexpr int kGateWeights = kInner + 2 * Inner::kBytes;
  static constexpr int kResult = kGateWeights + (kLearned<kGate> ? kGateBytes : 0);
  static constexpr int kBarriers = kResult + (kLearned<kGate> ? WideRow<64>::kRow : 0);
  static constexpr int kReady = kBarriers + Input::kBarrierBytes + 2 * Inner::kBarrierBytes;
  static constexpr int kSharedBytes = kReady + 3 * 8;
};

// A convolution of a warpgroup.
template <class S>
struct WideConv {
  using T = typename S::T;
  static constexpr int kHeld = S::kSteps - S::kShared;
  float d[32];
  uint32_t a[kHeld][4];
  float bias[2];
  uint64_t weights;

  // `held` are the weights for the registers, `shared` is the address of the others.
  __device__ __forceinline__ WideConv(const uint4* held, const float* biases, uint32_t shared,
                                      int thread) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const uint4 v = load_global(held + i * 128 + thread % 128);
      a[i][0] = v.x;
      a[i][1] = v.y;
      a[i][2] = v.z;
      a[i][3] = v.w;
    }
    load_bias(bias, biases, thread);
    weights = descriptor(shared, 1024, 128);
  }

  // The biases of the lane's two channels.  They are stored in the order of the tiles of mma.sync.
  __device__ __forceinline__ static void load_bias(float (&to)[2], const float* biases,
                                                   int thread) {
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int c = thread / 32 % 4 * 16 + thread % 32 / 4 + 8 * high;
      to[high] = load_global(biases + c / 32 * 32 + c % 8 / 2 * 8 + c / 8 % 4 * 2 + c % 2);
    }
  }
  __device__ __forceinline__ void fill(const float (&value)[2]) {
#pragma unroll
    for (int i = 0; i < 32; ++i) d[i] = value[i / 2 % 2];
  }
  // The lane's pair of pixels in tile j of 8 pixels, of its lower or higher channel.
  __device__ __forceinline__ uint32_t pair(int j, int high) const {
    return T::pack(d[4 * j + 2 * high], d[4 * j + 2 * high + 1]);
  }

  // Computes an output row from three rows at the addresses `row`.
  __device__ __forceinline__ void multiply(const uint32_t (&row)[3], uint64_t weights) {
    fill(bias);
    registers_fence(d);
    wgmma_fence();
#pragma unroll
    for (int s = 0; s < S::kSteps; ++s) {
      const uint64_t b = swizzled_descriptor(row[s / 12]) + s / 4 % 3 * (128 / 16) + s % 4 * 2;
      if (s % 3 == 2)
        wgmma<T>(d, weights + s / 3 * (S::kStepBytes / 16), b);
      else
        wgmma<T, 64>(d, a[s - s / 3], b, true);
    }
    wgmma_commit();
    wgmma_wait<0>();
    registers_fence(d);
  }

  // The 1x1 convolution of a row, with weights in shared memory.
  __device__ __forceinline__ void multiply_once(uint32_t row, uint32_t shared,
                                                const float (&biases)[2]) {
    fill(biases);
    registers_fence(d);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k)
      wgmma<T>(d, descriptor(shared, 1024, 128) + k * (S::kStepBytes / 16),
               swizzled_descriptor(row) + 2 * k);
    wgmma_commit();
    wgmma_wait<0>();
    registers_fence(d);
  }

  // Computes `outputs` rows from the rows in `in`, two more.  release(u) is called when input row u
  // is no longer needed, emit(u) when d is output row u.
  template <class In, class Release, class Emit>
  __device__ __forceinline__ void stream(const In& in, int outputs, Release release, Emit emit) {
    in.wait_full(0);
    in.wait_full(1);
#pragma unroll 1
    for (int u = 0; u < outputs; ++u) {
      in.wait_full(u + 2);
      // The second term is 0.  Without it the compiler keeps the descriptors in registers.
      multiply({in.slot(u), in.slot(u + 1), in.slot(u + 2)},
               weights + (static_cast<uint32_t>(outputs >> 31) & u));
      release(u);
      emit(u);
    }
  }
};

template <class S>
struct SpabWideWork : StreamStrip<S> {
  using Base = StreamStrip<S>;
  using Base::element, Base::inside_columns, Base::inside_rows, Base::lane, Base::left;
  using Base::quad, Base::rows, Base::top, Base::width;
  using T = typename S::T;
  using Conv = WideConv<S>;
  const SpabArguments& p;
  int thread, image_number;
  int warp, column, chunk;  // of the row of a transposed matrix that the lane addresses

  __device__ __forceinline__ SpabWideWork(const SpabArguments& p, int block, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, p.rows, block, thread),
        p(p),
        thread(thread % 128),
        image_number(block / p.tiles_x / p.tiles_y) {
    warp = thread / 32 % 4;
    column = lane / 16 * 8 + lane % 8;
    chunk = 2 * warp + lane / 8 % 2;
  }

  // Stores the valid pixels of a row whose first is at `row`.
  __device__ __forceinline__ void store(uint32_t row, int first, uint16_t* to) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int pixel = warp * 16 + i * 4 + lane / 8;
      uint4 v;
      load_shared(WideRow<68>::address(row, first + pixel, lane % 8), v);
      if (pixel < S::kValid && left + pixel < width)
        store_global(reinterpret_cast<uint4*>(to + pixel * S::P + lane % 8 * 8), v);
    }
  }

  // A convolution with an activation that is followed by `after` others.
  template <class In, class Release>
  __device__ __forceinline__ void activate(Conv& conv, const In& in, const typename S::Inner& out,
                                           int after, uint16_t* activation, Release release) const {
    uint32_t columns = 0;  // a bit for each of the lane's pixels: whether it is inside the image
#pragma unroll
    for (int i = 0; i < 16; ++i)
      if (inside_columns(left - after + i / 2 * 8 + quad * 2 + i % 2)) columns |= 1u << i;
    conv.stream(in, rows + 2 * after, release, [&](int u) {
      const int y = top - after + u;
      // Outside the image the result is zero, as the padding of the next convolution.
      const uint32_t real = inside_rows(y) ? columns : 0;
      out.wait_empty(u);
      const uint32_t to = WideRow<66>::address(out.slot(u), column, chunk);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t v[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const int tile = j + m / 2;
          const uint32_t mask =
              (real >> 2 * tile & 1 ? 0xffff : 0) | (real >> (2 * tile + 1) & 1 ? 0xffff0000 : 0);
          v[m] = activated<T, S::kActivation>(conv.pair(tile, m % 2)) & mask;
        }
        store_transposed(to + j / 2 * kSixteenPixels, v);
      }
      proxy_fence();
      synchronize_warp();
      if (lane == 0) barrier_arrive(out.full(u));
      if (activation != nullptr && u >= after && u < after + rows) {
        // Also orders this row's reads before the slot is written again, at least four rows later.
        synchronize_group(1);
        store(out.slot(u), after, activation + element(y, left, 0));
      }
    });
  }

  // The last convolution, the gate and the residual.  Also loads x: when this group has stored a
  // row, the slot of its residual is free, since the first group has long read it.
  template <class Release>
  __device__ __forceinline__ void finish(Conv& conv, const typename S::Inner& in,
                                         const typename S::Input& input, const TensorMap& map,
                                         uint32_t memory, Release release) const {
    const int inputs = rows + 2 * p.convs;
    int next = 0;  // the next row of x to load
    const auto load = [&](int count) {
      if (thread == 0)
        for (const int end = next + count; next < end && next < inputs; ++next) {
          barrier_arrive_expect(input.full(next), S::kCopied);
          copy_row(input.slot(next), map, left - p.convs, top - p.convs + next, image_number,
                   input.full(next));
        }
      synchronize_warp();
    };
    load(S::Input::kRows);
    // When three rows are here, the rows of x above the segment are no longer needed.
    in.wait_full(2);
    load(p.convs);

    float gate_bias[2];
    if constexpr (kLearned<S::kGate>) Conv::load_bias(gate_bias, p.bias + p.convs * S::P, thread);
    conv.stream(in, rows, release, [&](int u) {
      const uint32_t result = memory + S::kResult;
      const uint32_t at_result = WideRow<64>::address(result, column, chunk);
      if constexpr (kLearned<S::kGate>) {
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
          const uint32_t h[4] = {conv.pair(j, 0), conv.pair(j, 1), conv.pair(j + 1, 0),
                                 conv.pair(j + 1, 1)};
          store_transposed(at_result + j / 2 * kSixteenPixels, h);
        }
        proxy_fence();
        synchronize_group(2);
        conv.multiply_once(result, memory + S::kGateWeights, gate_bias);
      }
      input.wait_full(u + p.convs);
      const uint32_t at = WideRow<68>::address(input.slot(u + p.convs), column + p.convs, chunk);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t x[4] = {}, h[4];
        if constexpr (kResidual<S::kGate>) load_transposed(x, at + j / 2 * kSixteenPixels);
        if constexpr (kLearned<S::kGate>) load_transposed(h, at_result + j / 2 * kSixteenPixels);
        synchronize_warp();
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const uint32_t v = conv.pair(j + m / 2, m % 2);
          if constexpr (kLearned<S::kGate>)
            x[m] = gated<T, S::kActivation, S::kGate>(h[m], x[m], v);
          else
            x[m] = gated<T, S::kActivation, S::kGate>(v, x[m], 0);
        }
        store_transposed(at + j / 2 * kSixteenPixels, x);
      }
      proxy_fence();
      synchronize_group(2);
      // Every warp has stored the previous row.
      if (u > 0) load(1);
      store(input.slot(u + p.convs), p.convs, p.y + element(top + u, left, 0));
    });
  }
};

template <class T, class F>
void for_each_spab_wide(F f) {
  f(SpabWide<T, Activation::silu, GateKind::sigmoid>{});
  f(SpabWide<T, Activation::silu, GateKind::none>{});
  f(SpabWide<T, Activation::relu, GateKind::linear>{});
  f(SpabWide<T, Activation::relu, GateKind::tanh>{});
  f(SpabWide<T, Activation::relu, GateKind::act>{});
  f(SpabWide<T, Activation::mish, GateKind::sigmoid>{});
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    spab_wide_kernel(const SpabArguments p, const __grid_constant__ TensorMap map) {
#ifdef ESPAN_WGMMA
  const int thread = threadIdx.x;
  const uint32_t memory = shared_memory(), ready = memory + S::kReady;
  const typename S::Input input(memory + S::kInput, memory + S::kBarriers);
  const typename S::Inner first(memory + S::kInner, input.barriers + S::Input::kBarrierBytes);
  const typename S::Inner second(first.slots + S::Inner::kBytes,
                                 first.barriers + S::Inner::kBarrierBytes);
  if (thread == 0) {
    input.init(1, 0);
    first.init(4, 4);
    second.init(4, 4);
    for (int i = 0; i < p.convs; ++i) barrier_init(ready + 8 * i, 1);
    barrier_init_fence();
  }
  synchronize();
  grid_dependency_launch();
  grid_dependency_wait();
  const int group = uniform(thread / 128), i = group - (3 - p.convs);
  if (i < 0) return;  // with two convolutions the first group has none
  const SpabWideWork<S> work(p, blockIdx.x, thread);
  const uint4* weights = p.weights + i * S::kConvVectors;
  const uint32_t shared = memory + i * S::kConv;
  if (thread % 128 == 0) {
    const bool gate = kLearned<S::kGate> && group == 2;
    barrier_arrive_expect(ready + 8 * i, S::kConv + (gate ? S::kGateBytes : 0));
    bulk_copy(shared, weights + S::kConvVectors - S::kConv / 16, S::kConv, ready + 8 * i);
    if (gate)
      bulk_copy(memory + S::kGateWeights, weights + S::kConvVectors, S::kGateBytes, ready + 8 * i);
  }
  synchronize_warp();
  WideConv<S> conv(weights, p.bias + i * S::P, shared, thread);
  barrier_wait(ready + 8 * i, 0);
  const auto release = [&](const typename S::Inner& ring) {
    return [&, thread](int row) {
      synchronize_warp();
      if (thread % 32 == 0) barrier_arrive(ring.empty(row));
    };
  };
  const typename S::Inner last(p.convs == 3 ? second.slots : first.slots,
                               p.convs == 3 ? second.barriers : first.barriers);
  if (group == 2)
    work.finish(conv, last, input, map, memory, release(last));
  else if (i == 0)  // the last group knows when a row of x is no longer needed
    work.activate(conv, input, first, p.convs - 1, p.activation, [](int) {});
  else
    work.activate(conv, first, second, 1, nullptr, release(first));
#endif
}

}  // namespace espan::cuda
