// The first convolution on CUDA: checks, the choice of an instance and the launch of head.cuh.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "feature_checks.h"
#include "head.cuh"
#include "images.h"
#include "instances.h"

namespace espan::cuda {
namespace {

constexpr char kOp[] = "espan::head";

template <class T>
void choose(const Launch& launch, const Tensor& features, HeadArguments p) {
  for_each_head<T>([&](auto instance) {
    using S = decltype(instance);
    if (S::P != features.size(3)) return;
    const Tiling tiles(kOp, features.size(0), p.height, p.width, S::kHeight, S::kWidth);
    p.tiles_x = tiles.x;
    p.tiles_y = tiles.y;
    static_assert(S::kSharedBytes <= 48 << 10);  // more would need an opt-in
    head_kernel<S><<<tiles.blocks, S::kThreads, S::kSharedBytes, launch.stream()>>>(p);
  });
}

Tensor head(const Tensor& image, const Tensor& packed, const std::optional<Tensor>& mean,
            int64_t channels, int64_t kernel) {
  check_channels(kOp, channels);
  check_head_kernel(kOp, kernel);
  check_image(kOp, image);
  check_device(kOp, "packed", packed, "image", image);
  check_map_dtype(kOp, "packed", packed);
  const PackedSizes sizes = head_sizes(channels, kernel);
  check_packed(kOp, packed, packed, sizes);
  const int64_t c = padded(channels);
  HeadArguments p{};
  p.type = image_type(image.scalar_type());
  if (mean) {
    check_mean(kOp, *mean, image);
    p.mean = static_cast<const float*>(mean->const_data_ptr());
  }

  const Launch launch(kOp, image);
  const Tensor features = torch::stable::new_empty(
      packed, {image.size(0), image.size(2), image.size(3), c}, packed.scalar_type());
  p.image = image.const_data_ptr();
  for (int i = 0; i < 4; ++i) p.stride[i] = image.stride(i);
  p.features = static_cast<uint16_t*>(features.mutable_data_ptr());
  p.weights = static_cast<const uint4*>(packed.const_data_ptr());
  p.bias = reinterpret_cast<const float*>(p.weights + sizes.weights / 8);
  p.kernel = static_cast<int>(kernel);
  p.height = static_cast<int>(image.size(2));
  p.width = static_cast<int>(image.size(3));
  if (packed.scalar_type() == ScalarType::Half)
    choose<Float16>(launch, features, p);
  else
    choose<BFloat16>(launch, features, p);
  launch.finish();
  return features;
}

}  // namespace
}  // namespace espan::cuda

STABLE_TORCH_LIBRARY_IMPL(espan, CUDA, m) { m.impl("head", TORCH_BOX(&espan::cuda::head)); }
