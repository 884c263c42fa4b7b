// The GPU instructions that the loss uses, as functions.  The tests compile its kernel with g++
// against emulated functions of the same names.
#pragma once

#include <cstdint>

#ifndef ESPAN_EMULATOR

namespace espan::cuda {

__device__ __forceinline__ unsigned char* loss_shared_memory() {
  extern __shared__ __align__(128) unsigned char bytes[];
  return bytes;
}

// Shared memory accesses.  The emulator counts wavefronts by `kind`.
template <class V>
__device__ __forceinline__ V load_shared(const char* /* kind */, const void* from) {
  return *static_cast<const V*>(from);
}
template <class V>
__device__ __forceinline__ void store_shared(const char* /* kind */, void* to, V v) {
  *static_cast<V*>(to) = v;
}

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Loads 8x8 matrices of 16-bit values; lane l passes the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices(uint32_t (&m)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(m[0]), "=r"(m[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_transposed(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a b, 16 x 16 by 16 x 8 or 16 x 8 by 8 x 8, in fp16 or tf32 with fp32 accumulation.
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}
__device__ __forceinline__ void multiply_tf32(float (&d)[4], const uint32_t (&a)[4],
                                              const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The signs of two values as 16-bit floats: 0 for 0, NaN for NaN, otherwise bfloat16's 1 or -1.
__device__ __forceinline__ uint32_t sign_pair(float low, float high) {
  uint32_t v;
  asm("{\n\t"
      ".reg .b32 v;\n\t"
      "cvt.rn.bf16x2.f32 v, %2, %1;\n\t"
      "fma.rn.bf16x2 v, v, %3, %4;\n\t"  // times 2^126, so that no value is between 0 and 1
      "min.NaN.bf16x2 v, v, %5;\n\t"
      "max.NaN.bf16x2 %0, v, %6;\n\t"
      "}"
      : "=r"(v)
      : "f"(low), "f"(high), "r"(0x7e807e80), "r"(0x80008000), "r"(0x3f803f80), "r"(0xbf80bf80));
  return v;
}

// The value of the lane whose index is this lane's XOR `bits`.
template <class V>
__device__ __forceinline__ V exchange(V v, int bits) {
  return __shfl_xor_sync(0xffffffffu, v, bits);
}

// A barrier that returns whether any thread of the block passed true.
__device__ __forceinline__ bool barrier_any(bool v) { return __syncthreads_or(v); }

template <class V>
__device__ __forceinline__ V load_constant(const V* from) {
  return __ldg(from);
}

}  // namespace espan::cuda

#endif  // ESPAN_EMULATOR
