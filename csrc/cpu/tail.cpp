// The tail on the CPU: checks, and its layers as the engine runs them.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "../feature_checks.h"
#include "pixels.h"
#include "stream.h"

namespace espan::cpu {
namespace {

constexpr const char* kOp = "espan::tail";

Tensor tail(const Tensor& head, const Tensor& first, const Tensor& last,
            const std::optional<Tensor>& activation, const Tensor& packed, int64_t channels,
            int64_t scale, ScalarType dtype, const std::optional<Tensor>& flag) {
  check_channels(kOp, channels);
  check_scale(kOp, scale);
  check_features(kOp, "last", last, channels);
  check_features_like(kOp, "head", head, "last", last);
  check_features_like(kOp, "first", first, "last", last);
  if (activation) check_features_like(kOp, "activation", *activation, "last", last);
  check_device(kOp, "packed", packed, "last", last);
  check_packed(kOp, packed, last, tail_forms(channels, scale, activation ? 3 : 2));
  check_image_dtype(kOp, "dtype", dtype);
  if (flag) check_flag(kOp, *flag, last);

  std::vector<Tensor> maps{head, first};
  if (activation) maps.push_back(*activation);
  const int sides = static_cast<int>(maps.size()), upscaled = sides + 1;
  maps.push_back(last);
  Layers layers(static_cast<const float*>(packed.const_data_ptr()) + kUnused);
  int side = -1;
  for (int i = 0; i < sides; ++i) side = layers.pointwise(channels, layers.load(channels, i), side);
  const int fused = layers.conv(channels, layers.load(channels, sides), Activation::add, side);
  layers.upsample(channels, scale, fused, upscaled);

  const int64_t n = last.size(0), height = last.size(1), width = last.size(2);
  // Bytes leave as images are stored, pixel by pixel; the others as tensors are, plane by plane.
  const auto layout = dtype == ScalarType::Byte ? torch::headeronly::MemoryFormat::ChannelsLast
                                                : torch::headeronly::MemoryFormat::Contiguous;
  const Tensor image = torch::stable::empty({n, 3, scale * height, scale * width}, dtype,
                                            std::nullopt, std::nullopt, std::nullopt, layout);
  const Stream stream(layers, height, width);
  bool plausible = true;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<Pixels> outside;
    for (const Tensor& map : maps) outside.push_back(map_at(map, i));
    outside.push_back(image_at(image, i));
    const Range r = stream.run(outside);
    plausible = plausible && r.low >= -1 && r.high <= 2 && r.finite == 0;
  }
  if (flag && !plausible) *static_cast<int32_t*>(flag->mutable_data_ptr()) = 1;
  return image;
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) { m.impl("tail", TORCH_BOX(&espan::cpu::tail)); }
