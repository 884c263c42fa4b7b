// Descriptions of feature maps for Hopper's copies of tensors (copy_row in hopper.cuh).
#pragma once

#include <cuda.h>

#include "launch.h"

namespace espan::cuda {

// The driver's function that encodes them.  This library is not linked with the driver's.
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder(const char* op) {
  static const auto encoder = [&] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    check(op, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                               cudaEnableDefault, &found));
#else
    check(op,
          cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
    if (found != cudaDriverEntryPointSuccess || function == nullptr)
      fail(op, "the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encoder;
}

// Boxes of `pixels` pixels of a row of (N, H, W, 64) maps of 16-bit values, swizzled.
inline CUtensorMap rows_of(const char* op, const Tensor& x, int pixels) {
  const auto size = [&](int i) { return static_cast<cuuint64_t>(x.size(i)); };
  const cuuint64_t pixel = 2 * size(3), row = pixel * size(2);
  const cuuint64_t sizes[] = {size(3), size(2), size(1), size(0)};
  const cuuint64_t strides[] = {pixel, row, row * size(1)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(pixels), 1, 1}, steps[] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = tensor_map_encoder(op)(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(x.const_data_ptr()), sizes,
      strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    fail(op, "cuTensorMapEncodeTiled returned ", static_cast<int>(result));
  return map;
}

}  // namespace espan::cuda
