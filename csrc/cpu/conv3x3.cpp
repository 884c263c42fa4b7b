// A 3x3 convolution for training on the CPU: checks, threading and memory around conv3x3_kernel.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../host_checks.h"
#include "conv3x3_tasks.h"
#include "network_tasks.h"
#include "parallel.h"
#include "workspace.h"

#define ESPAN_KERNEL "conv3x3_kernel.h"
#include "for_each_isa.h"

namespace espan::cpu {
namespace {

// Tiles of a part of the weights' gradient: a multiple of a block, 0.3 ms of work with 32 channels.
// Each part has its own sums, added in order, so the result does not depend on the threads.
constexpr int64_t kTilesOfPart = 280;
constexpr int64_t kMostParts = 64;

Conv3x3Kernels kernels() {
  Conv3x3Kernels k;
  ESPAN_ON_ISA(conv3x3_kernels(&k));
  return k;
}

int64_t whole(int64_t channels, int64_t lanes) { return (channels + lanes - 1) / lanes * lanes; }

void check_maps(const char* op, const char* name, const Tensor& t) {
  if (t.scalar_type() != ScalarType::Float)
    fail(op, name, " has dtype ", dtype_name(t), "; it must be float32");
  if (t.dim() != 4 || t.size(1) < 1)
    fail(op, name, " has shape ", shape_name(t), "; it must be [N, C, H, W] with C >= 1");
}

// A tensor (N, C, H, W) whose channels are adjacent, with uninitialised values.
Tensor empty_channels_last(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  const Tensor t = torch::stable::new_empty(like, {n, h, w, c});  // N H W C
  return torch::stable::transpose(torch::stable::transpose(t, 1, 3), 2, 3);
}

Tensor channels_last(const Tensor& t) {
  if (t.stride(1) == 1 || t.size(1) == 1) return t;
  Tensor copy = empty_channels_last(t, t.size(0), t.size(1), t.size(2), t.size(3));
  torch::stable::copy_(copy, t);
  return copy;
}

template <class T>
Maps<T> maps(const Tensor& t, T* data) {
  return {data, t.stride(0), t.stride(2), t.stride(3)};
}

int64_t threads_for(int64_t tasks) {
  return std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), tasks));
}

Tensor conv3x3(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const char* op = "espan::conv3x3";
  check_maps(op, "x", x);
  check_device(op, "weight", weight, "x", x);
  if (weight.scalar_type() != ScalarType::Float)
    fail(op, "weight has dtype ", dtype_name(weight), "; it must be float32");
  if (weight.dim() != 4 || weight.size(1) != x.size(1) || weight.size(2) != 3 ||
      weight.size(3) != 3 || weight.size(0) < 1)
    fail(op, "weight has shape ", shape_name(weight), "; it must be [outputs, ", x.size(1),
         ", 3, 3], for the channels of x");
  if (bias) {
    check_device(op, "bias", *bias, "x", x);
    if (bias->dim() != 1 || bias->size(0) != weight.size(0) ||
        bias->scalar_type() != ScalarType::Float)
      fail(op, "bias has dtype ", dtype_name(*bias), " and shape ", shape_name(*bias),
           "; it must be float32 with shape [", weight.size(0), "], for the outputs of weight");
  }
  const Conv3x3Size size{x.size(0), x.size(2), x.size(3), x.size(1), weight.size(0)};
  const Tensor y = empty_channels_last(x, size.images, size.outputs, size.height, size.width);
  if (y.numel() == 0) return y;
  const Tensor from = channels_last(x);

  const Conv3x3Kernels k = kernels();
  const int64_t outputs = whole(size.outputs, k.lanes), threads = threads_for(size.tile_rows());
  const int64_t scratch = k.forward_scratch(size), weights = 36 * size.inputs * outputs;
  const Workspace memory = take_workspace(threads * scratch + weights + outputs);
  float* packed = memory.get() + threads * scratch;
  const int64_t strides[] = {weight.stride(0), weight.stride(1), weight.stride(2),
                             weight.stride(3)};
  k.transform(size, weight.const_data_ptr<float>(), strides, packed);
  float* biases = packed + weights;
  std::fill_n(biases, outputs, 0.0f);
  if (bias)
    for (int64_t o = 0; o < size.outputs; ++o)
      biases[o] = bias->const_data_ptr<float>()[o * bias->stride(0)];
  const Conv3x3Forward f{size, maps(from, from.const_data_ptr<float>()),
                         maps(y, y.mutable_data_ptr<float>()), packed, biases};
  parallel(threads, [&](int64_t thread) {
    k.forward(f, size.tile_rows() * thread / threads, size.tile_rows() * (thread + 1) / threads,
              memory.get() + thread * scratch);
  });
  return y;
}

std::tuple<Tensor, Tensor> conv3x3_weight_gradient(const Tensor& grad, const Tensor& x) {
  const char* op = "espan::conv3x3_weight_gradient";
  check_maps(op, "x", x);
  check_maps(op, "grad", grad);
  check_device(op, "grad", grad, "x", x);
  if (grad.size(0) != x.size(0) || grad.size(2) != x.size(2) || grad.size(3) != x.size(3))
    fail(op, "grad has shape ", shape_name(grad), "; it must be [", x.size(0), ", outputs, ",
         x.size(2), ", ", x.size(3), "], for the images of x");
  const Conv3x3Size size{x.size(0), x.size(2), x.size(3), x.size(1), grad.size(1)};
  const Tensor grad_weight = torch::stable::new_empty(x, {size.outputs, size.inputs, 3, 3});
  const Tensor grad_bias = torch::stable::new_empty(x, {size.outputs});
  const Tensor from = channels_last(x), by = channels_last(grad);

  const Conv3x3Kernels k = kernels();
  const int64_t tile_rows = size.tile_rows();
  const int64_t parts = std::clamp<int64_t>(tile_rows * size.tiles() / kTilesOfPart, 1,
                                            std::max<int64_t>(1, std::min(kMostParts, tile_rows)));
  const int64_t threads = threads_for(parts), scratch = k.gradient_scratch(size);
  const int64_t sums = 36 * whole(size.inputs, k.lanes) * whole(size.outputs, k.lanes);
  const Workspace memory = take_workspace(threads * scratch + parts * sums);
  float* weights = memory.get() + threads * scratch;
  std::vector<double> bias(parts * size.outputs);
  parallel(threads, [&](int64_t thread) {
    for (int64_t i = parts * thread / threads; i < parts * (thread + 1) / threads; ++i) {
      const Conv3x3Gradient g{size, maps(from, from.const_data_ptr<float>()),
                              maps(by, by.const_data_ptr<float>()), weights + i * sums,
                              bias.data() + i * size.outputs};
      std::fill_n(g.weights, sums, 0.0f);
      k.gradient(g, tile_rows * i / parts, tile_rows * (i + 1) / parts,
                 memory.get() + thread * scratch);
    }
  });
  for (int64_t i = 1; i < parts; ++i) {
    for (int64_t j = 0; j < sums; ++j) weights[j] += weights[i * sums + j];
    for (int64_t o = 0; o < size.outputs; ++o) bias[o] += bias[i * size.outputs + o];
  }
  k.transform_back(size, weights, grad_weight.mutable_data_ptr<float>());
  std::copy_n(bias.begin(), size.outputs, grad_bias.mutable_data_ptr<float>());
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&espan::cpu::conv3x3));
  m.impl("conv3x3_weight_gradient", TORCH_BOX(&espan::cpu::conv3x3_weight_gradient));
}
