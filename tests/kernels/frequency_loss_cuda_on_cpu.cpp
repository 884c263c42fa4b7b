// The source of the loss's CUDA kernels, its threads run as fibers by tests/emulator: shared memory
// begins as NaN and warps take turns in an order of choice, so a missing barrier shows.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/machine.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#define threadIdx (espan::emulator::thread_index())
#define blockIdx (espan::emulator::block_index())
#define __syncthreads() espan::emulator::barrier()
#define ESPAN_EMULATOR
#define ESPAN_SHARED_BYTES(name) unsigned char* name = espan::emulator::shared(0, 1)

// What only the GPU has.
static float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

#include "cuda/frequency_loss.cuh"

namespace {

// As run() in csrc/cuda/frequency_loss.cu; `sums` has room for three floats of each tile.
template <class T>
void loss(const T* sr, const T* hr, T* grad, const float* scale, float* sums, float* loss,
          float* terms, int64_t planes, int64_t height, int64_t width,
          const espan::LossOptions& options, bool aligned, unsigned order) {
  using namespace espan;
  using namespace espan::cuda;
  const Axis vertical = cut(height, kLossRowBlocks), horizontal = cut(width, kLossColumnBlocks);
  const unsigned tiles = planes * vertical.tiles * horizontal.tiles;
  const double elements = planes * height * width;
  const double coefficients = 64.0 * planes * vertical.blocks * horizontal.blocks;
  const LossArguments<T> p = {
      sr,     hr,       grad,       scale,
      sums,   vertical, horizontal, options.weights(elements, coefficients, 1.0),
      aligned};
  emulator::run(tiles, kLossThreads, sizeof(LossShared), order, {}, [&] {
    grad ? frequency_loss_kernel<T, true>(p) : frequency_loss_kernel<T, false>(p);
  });
  const LossSumArguments q = {
      sums,          tiles,        elements, coefficients, options.pixel_weight,
      options.alpha, options.beta, loss,     terms};
  emulator::run(1, kLossSumThreads, 3 * kLossSumThreads * sizeof(double), order, {},
                [&] { frequency_loss_sum_kernel(q); });
}

}  // namespace

#define ESPAN_EXPORT(NAME, T)                                                                     \
  extern "C" void loss_##NAME(const T* sr, const T* hr, T* grad, const float* scale, float* sums, \
                              float* value, float* terms, int64_t planes, int64_t height,         \
                              int64_t width, double pixel_weight, double alpha, double beta,      \
                              bool squared, bool aligned, unsigned order) {                       \
    loss(sr, hr, grad, scale, sums, value, terms, planes, height, width,                          \
         {pixel_weight, alpha, beta, squared}, aligned, order);                                   \
  }

ESPAN_EXPORT(float32, float)
#ifndef ESPAN_FLOAT32_ONLY
ESPAN_EXPORT(float16, __half)
ESPAN_EXPORT(bfloat16, __nv_bfloat16)
#endif
