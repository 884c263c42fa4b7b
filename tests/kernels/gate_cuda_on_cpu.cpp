// The gate's CUDA kernels, compiled with a C++ compiler.  The threads are independent, so they can
// run one after the other.
#include <cmath>
#include <cstdint>

struct Index {
  unsigned x;
};
static Index blockIdx, threadIdx, blockDim, gridDim;

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __launch_bounds__
#define __launch_bounds__(threads)

// The GPU's fast functions, which are accurate to a few ulp.
static float __fdividef(float a, float b) { return a / b; }
#define __expf std::exp  // a macro, because glibc declares a function of that name

#include "cuda/gate.cuh"

namespace {

template <class Body>
void launch(unsigned blocks, unsigned threads, Body body) {
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) body();
}

}  // namespace

#define ESPAN_EXPORT(NAME, T)                                                                     \
  extern "C" void forward_##NAME(const T* o, const T* x, T* y, int64_t packs, int64_t n) {        \
    launch(3, 32, [=] { espan::cuda::gate_forward_kernel(o, x, y, packs, n); });                  \
  }                                                                                               \
  extern "C" void backward_##NAME(const T* g, const T* o, const T* x, T* grad_o, T* grad_x,       \
                                  int64_t packs, int64_t n) {                                     \
    launch(3, 32, [=] { espan::cuda::gate_backward_kernel(g, o, x, grad_o, grad_x, packs, n); }); \
  }

ESPAN_EXPORT(float32, float)
ESPAN_EXPORT(float16, __half)
ESPAN_EXPORT(bfloat16, __nv_bfloat16)
ESPAN_EXPORT(float64, double)
