// Hopper's instructions as functions; primitives.cuh has those that all GPUs share.
#pragma once

#include "primitives.cuh"

#ifdef ESPAN_EMULATOR
#include "hopper_emulator.h"
#else

// Only sm_90a has wgmma.  For other architectures the kernels compile to empty functions.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define ESPAN_WGMMA
#endif

namespace espan::cuda {

__device__ __forceinline__ void synchronize_warp() { __syncwarp(); }

// Returns v, and tells the compiler that it is the same in all lanes of a warp.
__device__ __forceinline__ int uniform(int v) { return __shfl_sync(0xffffffff, v, 0); }

// Moves registers from warpgroups that need few to those that need many.
template <bool Increase, int Count>
__device__ __forceinline__ void set_registers() {
  if constexpr (Increase)
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
  else
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}

// Lets the next kernel of the stream start.  What it does after grid_dependency_wait() is ordered
// after everything in this one.
__device__ __forceinline__ void grid_dependency_launch() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void grid_dependency_wait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Barriers in shared memory.  A phase is complete when `count` threads have arrived and all
// expected bytes have been copied.
__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
// Call after the inits and before the block's barrier.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Waits for the end of a phase; `parity` is 0 for the first, third, ... phase, 1 for the others.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@done bra over;\n"
      "bra again;\n"
      "over: }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// The thread arrives when the copies that it has started are complete.
__device__ __forceinline__ void copies_arrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
// Starts a copy to shared memory of bytes that the barrier already expects.
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

// The wgmma descriptor of B: blocks of 8 columns x 8 values of K, 128 bytes each, `leading` bytes
// apart along K and `stride` bytes along the columns.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading,
                                               uint32_t stride) {
  const uint32_t low = (address & 0x3ffff) >> 4 | leading >> 4 << 16, high = stride >> 4;
  uint64_t both;
  asm("mov.b64 %0, {%1, %2};" : "=l"(both) : "r"(low), "r"(high));
  return both;
}

// d (+)= a b, 64 x 16 by 16 x N on a warpgroup, in float32.  Warp r / 16 has row r of d and a;
// d[4 j] to d[4 j + 3] are laid out like tile j of an mma.  Asynchronous: d, a and the memory of b
// must not be touched until wgmma_wait.
template <class T, int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate);

#define ESPAN_R8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define ESPAN_R16 ESPAN_R8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define ESPAN_R24 ESPAN_R16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define ESPAN_R32 ESPAN_R24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define ESPAN_R40 ESPAN_R32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define ESPAN_R48 ESPAN_R40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define ESPAN_R56 ESPAN_R48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define ESPAN_R64 ESPAN_R56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define ESPAN_R72 ESPAN_R64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define ESPAN_D(i) "+f"(d[i])
#define ESPAN_D4(i) ESPAN_D(i), ESPAN_D(i + 1), ESPAN_D(i + 2), ESPAN_D(i + 3)
#define ESPAN_D8(i) ESPAN_D4(i), ESPAN_D4(i + 4)
#define ESPAN_D16(i) ESPAN_D8(i), ESPAN_D8(i + 8)
#define ESPAN_D24(i) ESPAN_D16(i), ESPAN_D8(i + 16)
#define ESPAN_D32(i) ESPAN_D16(i), ESPAN_D16(i + 16)
#define ESPAN_D48(i) ESPAN_D24(i), ESPAN_D24(i + 24)
#define ESPAN_D72(i) ESPAN_D48(i), ESPAN_D24(i + 48)
#define ESPAN_WGMMA_OF(T, type, N, registers, operands, a_and_b, keep)                          \
  template <>                                                                                   \
  __device__ __forceinline__ void wgmma<T, N>(float (&d)[N / 2], const uint32_t (&a)[4],        \
                                              uint64_t b, bool accumulate) {                    \
    asm volatile("{ .reg .pred keep; setp.ne.b32 keep, " keep                                   \
                 ", 0;\n"                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" registers \
                 "}, " a_and_b ", keep, 1, 1, 0; }"                                             \
                 : operands                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b),                          \
                   "r"(static_cast<int>(accumulate)));                                          \
  }
#define ESPAN_WGMMA_FOR(T, type)                                                           \
  ESPAN_WGMMA_OF(T, type, 16, ESPAN_R8, ESPAN_D8(0), "{%8, %9, %10, %11}, %12", "%13")     \
  ESPAN_WGMMA_OF(T, type, 32, ESPAN_R16, ESPAN_D16(0), "{%16, %17, %18, %19}, %20", "%21") \
  ESPAN_WGMMA_OF(T, type, 48, ESPAN_R24, ESPAN_D24(0), "{%24, %25, %26, %27}, %28", "%29") \
  ESPAN_WGMMA_OF(T, type, 64, ESPAN_R32, ESPAN_D32(0), "{%32, %33, %34, %35}, %36", "%37") \
  ESPAN_WGMMA_OF(T, type, 96, ESPAN_R48, ESPAN_D48(0), "{%48, %49, %50, %51}, %52", "%53") \
  ESPAN_WGMMA_OF(T, type, 144, ESPAN_R72, ESPAN_D72(0), "{%72, %73, %74, %75}, %76", "%77")
ESPAN_WGMMA_FOR(Float16, "f16")
ESPAN_WGMMA_FOR(BFloat16, "bf16")

// Required before the first product that reads registers written since the last wait.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits for all but the last kRunning groups of committed products.
template <int kRunning>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kRunning) : "memory");
}
// Prevents the compiler from moving accesses to the accumulators across it.  Otherwise it moves
// them to where products run and has to wait for each product.
template <int N>
__device__ __forceinline__ void registers_fence(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int N>
__device__ __forceinline__ void registers_fence(uint32_t (&a)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(a[i])::"memory");
}
// v = d, d = next, as one asm statement for the same reason.
__device__ __forceinline__ void move_out(float& v, float& d, float next) {
  asm volatile("mov.b32 %0, %1;\n\tmov.b32 %1, %2;" : "=&f"(v), "+f"(d) : "f"(next));
}
// The same for two values, which are rounded to a pair of T.
template <class T>
__device__ __forceinline__ uint32_t pack_out(float& low, float& high, float next_low,
                                             float next_high);
template <>
__device__ __forceinline__ uint32_t pack_out<Float16>(float& low, float& high, float next_low,
                                                      float next_high) {
  uint32_t v;
  asm volatile("cvt.rn.f16x2.f32 %0, %2, %1;\n\tmov.b32 %1, %3;\n\tmov.b32 %2, %4;"
               : "=&r"(v), "+f"(low), "+f"(high)
               : "f"(next_low), "f"(next_high));
  return v;
}
template <>
__device__ __forceinline__ uint32_t pack_out<BFloat16>(float& low, float& high, float next_low,
                                                       float next_high) {
  uint32_t v;
  asm volatile("cvt.rn.bf16x2.f32 %0, %2, %1;\n\tmov.b32 %1, %3;\n\tmov.b32 %2, %4;"
               : "=&r"(v), "+f"(low), "+f"(high)
               : "f"(next_low), "f"(next_high));
  return v;
}

}  // namespace espan::cuda

#endif  // ESPAN_EMULATOR
