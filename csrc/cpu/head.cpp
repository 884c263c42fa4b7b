// The first convolution on the CPU: checks, and its layers as the engine runs them.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../feature_checks.h"
#include "pixels.h"
#include "stream.h"

namespace espan::cpu {
namespace {

constexpr const char* kOp = "espan::head";

Tensor head(const Tensor& image, const Tensor& packed, const std::optional<Tensor>& mean,
            int64_t channels, int64_t kernel) {
  check_channels(kOp, channels);
  check_head_kernel(kOp, kernel);
  check_image(kOp, image);
  check_device(kOp, "packed", packed, "image", image);
  check_map_dtype(kOp, "packed", packed);
  check_packed(kOp, packed, packed, head_forms(channels, kernel));
  if (mean) check_mean(kOp, *mean, image);

  enum Outside { source, features };
  Layers layers(static_cast<const float*>(packed.const_data_ptr()) + kUnused);
  layers.store(channels, layers.head(channels, kernel, source), features);

  const int64_t n = image.size(0), height = image.size(2), width = image.size(3);
  const Tensor out =
      torch::stable::new_empty(packed, {n, height, width, padded(channels)}, packed.scalar_type());
  const float black[3] = {};
  const float* subtracted = mean ? mean->const_data_ptr<float>() : black;
  const Stream stream(layers, height, width);
  for (int64_t i = 0; i < n; ++i) stream.run({image_at(image, i), map_at(out, i)}, subtracted);
  return out;
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) { m.impl("head", TORCH_BOX(&espan::cpu::head)); }
