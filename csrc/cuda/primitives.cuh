// GPU instructions as functions.  The kernels of spab, head and tail use nothing else, so that the
// tests can compile them with g++ against an emulator of these functions (tests/emulator).
#pragma once

#include <cstdint>

#ifdef ESPAN_EMULATOR
#include "emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace espan::cuda {

// The element types of feature maps.
struct Float16 {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __half2 v = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(v);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t v) {
    return __half22float2(reinterpret_cast<const __half2&>(v));
  }
};
struct BFloat16 {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(v);
  }
  static __device__ __forceinline__ float2 unpack(uint32_t v) {
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(v));
  }
};

// Shared memory has 32-bit addresses; this is the start of the block's.
__device__ __forceinline__ uint32_t shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(bytes));
}

__device__ __forceinline__ void synchronize() { __syncthreads(); }

// Loads the four 8x8 matrices of an mma's A; lane l passes the address of row l % 16 and column
// l / 16 * 8.
__device__ __forceinline__ void load_matrix(uint32_t (&a)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address)
               : "memory");
}

// d += a b, 16 x 16 by 16 x 8, in float32.
template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1);
template <>
__device__ __forceinline__ void multiply<Float16>(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void multiply<BFloat16>(float (&d)[4], const uint32_t (&a)[4],
                                                   uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts to copy 16 or 8 bytes to shared memory; zeros if `take` is false.
template <int Bytes>
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool take) {
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(take ? 16 : 0)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from),
                 "r"(take ? 8 : 0)
                 : "memory");
}
// Waits for this thread's copies.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// The shared memory accesses below are called by a whole warp.  A lane stores nothing if its `keep`
// is false.
__device__ __forceinline__ void store_shared(uint32_t to, uint4 v, bool keep) {
  if (keep)
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, uint2 v, bool keep) {
  if (keep)
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(v.x), "r"(v.y) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, uint16_t v, bool keep) {
  if (keep) asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(v) : "memory");
}
__device__ __forceinline__ void load_shared(uint32_t from, uint32_t& v) {
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(v) : "r"(from) : "memory");
}
__device__ __forceinline__ void load_shared(uint32_t from, uint2& v) {
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from) : "memory");
}
__device__ __forceinline__ void load_shared(uint32_t from, uint4& v) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(from)
               : "memory");
}

// Loads from memory that no thread of this launch writes.
template <class V>
__device__ __forceinline__ V load_global(const V* from) {
  return __ldg(from);
}
template <class V>
__device__ __forceinline__ void store_global(V* to, V v) {
  *to = v;
}

__device__ __forceinline__ int round_to_int(float v) { return __float2int_rn(v); }

// Returns v, but hides its origin from the compiler, which then recomputes what depends on it
// instead of keeping earlier results in registers.
__device__ __forceinline__ int recompute(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// threadIdx.x of a block of one dimension, from another register: the compiler computes anew what
// depends on it, where it would keep what depends on threadIdx.
__device__ __forceinline__ int thread_again() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return threadIdx.x / 32 * 32 + lane;
}

// One instruction.  Its relative error of 2^-11 is that of rounding to float16.
__device__ __forceinline__ float tanh_approximate(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Relative errors of 2^-22 and 2^-23.
__device__ __forceinline__ float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_approximate(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Arithmetic on pairs of float16.  tanh has an error of 2^-11, like the rounding.
__device__ __forceinline__ uint32_t tanh_of_pair(uint32_t x) {
  uint32_t y;
  asm("tanh.approx.f16x2 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
__device__ __forceinline__ uint32_t fma_of_pairs(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t v;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(v) : "r"(a), "r"(b), "r"(c));
  return v;
}
__device__ __forceinline__ uint32_t product_of_pairs(uint32_t a, uint32_t b) {
  uint32_t v;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
__device__ __forceinline__ uint32_t sum_of_pairs(uint32_t a, uint32_t b) {
  uint32_t v;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}

// max(x, 0) of a pair of T; NaN remains NaN.
template <class T>
__device__ __forceinline__ uint32_t relu_of_pair(uint32_t x);
template <>
__device__ __forceinline__ uint32_t relu_of_pair<Float16>(uint32_t x) {
  uint32_t y;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(y) : "r"(x), "r"(0));
  return y;
}
template <>
__device__ __forceinline__ uint32_t relu_of_pair<BFloat16>(uint32_t x) {
  uint32_t y;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(x), "r"(0));
  return y;
}

}  // namespace espan::cuda

#endif  // ESPAN_EMULATOR
