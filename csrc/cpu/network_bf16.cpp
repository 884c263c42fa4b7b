// The layers of the network with products of bf16 values, for AVX-512 without a matrix unit.
#include "../host_checks.h"
#include "network_tasks.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif
#define ESPAN_LANES 16
#define ESPAN_BFLOAT16 1
#define ESPAN_KERNEL "network_kernel.h"
namespace espan::cpu::bfloat16 {
namespace {
#include "vec.h"
#include "vec_math.h"
#include ESPAN_KERNEL
}  // namespace
}  // namespace espan::cpu::bfloat16
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace espan::cpu {
NetworkKernels bfloat16_kernels() {
  NetworkKernels kernels;
  bfloat16::network_kernels(&kernels);
  return kernels;
}
}  // namespace espan::cpu

#else

namespace espan::cpu {
NetworkKernels bfloat16_kernels() { return {}; }  // never called
}  // namespace espan::cpu

#endif
