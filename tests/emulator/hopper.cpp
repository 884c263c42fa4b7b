// A small matrix product that uses the emulator's Hopper features, with selectable mistakes, to
// test the emulator itself.

#define ESPAN_EMULATOR
#include "cuda/hopper.cuh"

#include "driver.h"

namespace espan::cuda {
namespace {

enum class Mistake : int {
  none,
  no_proxy_fence,
  proxy_fence_by_one_lane,
  proxy_fence_before_the_stores,
  a_phase_off,
  no_wait_for_a_filled_slot,
  no_wait_for_an_empty_slot,
  results_before_the_wait,
  accumulators_written_early,
  operands_overwritten_early,
  slot_released_before_the_wait,
  slot_released_by_one_lane,
  no_commit,
  no_fence_of_registers,
  leading_and_stride_exchanged,
  slot_never_released,
  bytes_never_copied,
  one_arrival_too_few,
  no_barrier_after_the_inits,
  slot_over_the_barriers,
};

struct Arguments {
  const uint16_t *a, *b;  // (64, 16 steps); (steps, 2, N, 8)
  float* d;               // 64 x N
  int steps;
  Mistake mistake;
};

template <class T_, int N_>
struct Multiply {
  using T = T_;
  static constexpr int N = N_, kSlots = 2, kA = 64 * 32, kB = 32 * N;
  static constexpr int kSlot = kA + kB, kBarriers = kSlots * kSlot;
  static constexpr int kSharedBytes = kBarriers + kSlots * 16;
};

// d = a b.  One warp loads a with cp.async, and b with a bulk copy in even steps and with stores in
// odd steps.
template <class S>
void multiply_kernel(const Arguments& p) {
  const int thread = threadIdx.x, lane = thread % 32;
  const auto makes = [&](Mistake m) { return p.mistake == m; };
  const uint32_t memory = shared_memory();
  const auto slot = [&](int k) {
    const uint32_t shift = makes(Mistake::slot_over_the_barriers) ? 16 : 0;
    return memory + k % S::kSlots * S::kSlot + shift;
  };
  const auto full = [&](int k) { return memory + S::kBarriers + k % S::kSlots * 16; };
  const auto empty = [&](int k) { return full(k) + 8; };
  const auto phase = [&](int k) { return static_cast<uint32_t>(k / S::kSlots & 1); };
  if (thread == 0) {
    for (int k = 0; k < S::kSlots; ++k) {
      barrier_init(full(k), makes(Mistake::one_arrival_too_few) ? 32 : 33);
      barrier_init(empty(k), 4);
    }
    barrier_init_fence();
  }
  if (!makes(Mistake::no_barrier_after_the_inits)) synchronize();

  if (thread >= 128) {
    for (int k = 0; k < p.steps; ++k) {
      if (!makes(Mistake::no_wait_for_an_empty_slot)) barrier_wait(empty(k), phase(k) ^ 1);
      for (int i = lane; i < 128; i += 32)
        copy_async<16>(slot(k) + i * 16, p.a + (i / 2 * p.steps + k) * 16 + i % 2 * 8, true);
      copies_arrive(full(k));
      const uint32_t b = slot(k) + S::kA;
      const uint16_t* from = p.b + k * (S::kB / 2);
      if (k % 2 == 0) {
        const int more = makes(Mistake::bytes_never_copied) ? 16 : 0;
        if (lane == 0) {
          barrier_arrive_expect(full(k), S::kB + more);
          bulk_copy(b, from, S::kB, full(k));
        }
        continue;
      }
      if (makes(Mistake::proxy_fence_before_the_stores)) proxy_fence();
      for (int i = lane; i < S::kB / 16; i += 32)
        store_shared(b + i * 16, load_global(reinterpret_cast<const uint4*>(from) + i), true);
      const bool missing =
          makes(Mistake::no_proxy_fence) || makes(Mistake::proxy_fence_before_the_stores);
      if (!missing && (lane == 0 || !makes(Mistake::proxy_fence_by_one_lane))) proxy_fence();
      synchronize_warp();
      if (lane == 0) barrier_arrive(full(k));
    }
    return;
  }

  const auto release = [&](int k) {
    if (!makes(Mistake::slot_released_by_one_lane)) synchronize_warp();
    if (lane == 0 && !makes(Mistake::slot_never_released)) barrier_arrive(empty(k));
  };
  float d[S::N / 2] = {};
  for (int k = 0; k < p.steps; ++k) {
    if (!makes(Mistake::no_wait_for_a_filled_slot))
      barrier_wait(full(k), phase(k) ^ makes(Mistake::a_phase_off));
    uint32_t a[4];
    load_matrix(a, slot(k) + (thread / 32 * 16 + lane % 16) * 32 + lane / 16 * 16);
    const int along = makes(Mistake::leading_and_stride_exchanged) ? 128 : S::N * 16;
    const uint64_t b = descriptor(slot(k) + S::kA, along, S::N * 16 + 128 - along);
    registers_fence(d);
    if (!makes(Mistake::no_fence_of_registers)) wgmma_fence();
    wgmma<typename S::T, S::N>(d, a, b, k > 0);
    if (!makes(Mistake::no_commit)) wgmma_commit();
    if (makes(Mistake::slot_released_before_the_wait)) release(k);
    if (makes(Mistake::operands_overwritten_early)) a[0] = 0;
    if (makes(Mistake::accumulators_written_early)) d[0] = 0;
    if (makes(Mistake::results_before_the_wait) && k == p.steps - 1) break;
    wgmma_wait<0>();
    registers_fence(d);
    if (!makes(Mistake::slot_released_before_the_wait)) release(k);
  }
  for (int i = 0; i < S::N / 2; ++i) {
    const int row = thread / 32 * 16 + lane / 4 + i % 4 / 2 * 8;
    store_global(p.d + row * S::N + i / 4 * 8 + lane % 4 * 2 + i % 2, d[i]);
  }
  if (makes(Mistake::results_before_the_wait)) wgmma_wait<0>();
}

}  // namespace
}  // namespace espan::cuda

namespace espan::emulator {
namespace {

template <class T, int N>
Result run_multiply(Arguments& arguments) {
  using S = cuda::Multiply<T, N>;
  const Buffer a = arguments.buffer(), b = arguments.buffer(), d = arguments.buffer();
  const int steps = arguments.number();
  const auto mistake = static_cast<cuda::Mistake>(arguments.number());
  const unsigned order = arguments.number();
  const cuda::Arguments p{a.pointer<const uint16_t>(), b.pointer<const uint16_t>(),
                          d.pointer<float>(), steps, mistake};
  return run(1, 160, S::kSharedBytes, order, {a.readable(), b.readable(), d.writable()},
             [&] { cuda::multiply_kernel<S>(p); });
}

}  // namespace

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = {
      {{{"bfloat16", false}, {"n", 16}}, &run_multiply<cuda::Float16, 16>},
      {{{"bfloat16", false}, {"n", 96}}, &run_multiply<cuda::Float16, 96>},
      {{{"bfloat16", true}, {"n", 48}}, &run_multiply<cuda::BFloat16, 48>},
  };
  return all;
}

}  // namespace espan::emulator
