// Shared by all CUDA host functions: types, device, stream, grid size and error check of a launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <type_traits>

#include "../host_checks.h"

// Defined in libtorch_cuda.so.  Declared weak, so that this library also loads with a CPU-only
// PyTorch, where no tensor can reach a CUDA kernel.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace espan::cuda {

// The CUDA type that corresponds to a C++ dtype.
template <class T>
using DeviceType =
    std::conditional_t<std::is_same_v<T, Half>, __half,
                       std::conditional_t<std::is_same_v<T, BFloat16>, __nv_bfloat16, T>>;

inline void check(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which the next op would report again
  fail(op, "CUDA error: ", cudaGetErrorString(error));
}

// Makes the tensor's device current for a scope, and provides PyTorch's current stream on it.
class Launch {
 public:
  Launch(const char* op, const Tensor& t) : op_(op), guard_(t.get_device_index()) {
    // This library has its own static CUDA runtime; the guard sets the device of PyTorch's only.
    check(op, cudaSetDevice(t.get_device_index()));
    if (aoti_torch_get_current_cuda_stream == nullptr) fail(op, "this PyTorch has no CUDA");
    void* stream = nullptr;
    if (aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) != AOTI_TORCH_SUCCESS)
      fail(op, "PyTorch has no current stream on cuda:", t.get_device_index());
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // The number of blocks of `threads` threads for a grid-stride loop over `items`: at most as many
  // as the GPU can hold at once.
  unsigned blocks(int64_t items, int threads) const {
    int device = 0, processors = 0;
    check(op_, cudaGetDevice(&device));
    check(op_, cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    const int64_t resident = static_cast<int64_t>(processors) * (2048 / threads);
    return static_cast<unsigned>(std::min(resident, (items + threads - 1) / threads));
  }

  void finish() const { check(op_, cudaGetLastError()); }

 private:
  const char* op_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace espan::cuda
