// Vectors of 16 bytes, and conversions of their elements to and from float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace espan::cuda {

// 16 bytes, the widest load that a thread can issue on all supported GPUs.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T lane[kSize];
};

// The 16-bit types are computed in float32.
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ __forceinline__ void narrow(double v, double& to) { to = v; }
__device__ __forceinline__ void narrow(float v, float& to) { to = v; }
__device__ __forceinline__ void narrow(float v, __half& to) { to = __float2half_rn(v); }
__device__ __forceinline__ void narrow(float v, __nv_bfloat16& to) { to = __float2bfloat16_rn(v); }

}  // namespace espan::cuda
