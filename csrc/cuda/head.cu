// The first convolution on CUDA: checks, the choice of an instance and the launch of head.cuh.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>

#include "feature_checks.h"
#include "head_hopper.cuh"
#include "images.h"
#include "instances.h"
#include "segments.h"

namespace espan::cuda {
namespace {

constexpr char kOp[] = "espan::head";

// Runs the streamed kernel if there is one for this GPU, kernel size and number of channels;
// returns whether it did.
template <class T>
bool stream(const Launch& launch, const Tensor& features, HeadArguments p) {
  // With 16 channels, starting a segment takes longer than the first kernel saves: on an H200 a 9x9
  // took 0.0066 ms instead of 0.0060 at 256x256, and 0.0106 instead of 0.0092 at 510x339.
  constexpr int64_t kSmall = 510 * 339 * 16;
  if (features.size(3) == 16 && features.numel() <= kSmall) return false;
  bool done = false;
  for_each_head_stream<T>([&](auto instance) {
    using S = decltype(instance);
    constexpr auto kKernel = head_stream_kernel<S>;
    if (S::P != features.size(3) || S::kKernel != p.kernel) return;
    if (S::kUnshuffle != p.unshuffle || !can_stream<kKernel>(kOp)) return;
    if (!S::kActivates && p.activation != Activation::none) return;
    // Starting a segment takes as long as 3.4 rows of a 9x9 convolution, measured on an H200.
    const Segments plan(kOp, features.size(0), p.height, p.width, S::kValid, S::kGroups, 4);
    p.tiles_x = plan.strips;
    p.tiles_y = plan.segments;
    p.rows = plan.rows;
    p.items = plan.items;
    p.blocks = plan.blocks;
    p.weights = reinterpret_cast<const uint4*>(p.bias + S::P);
    launch_after<kKernel>(kOp, launch, plan.blocks, S::kThreads, S::kSharedBytes, p);
    done = true;
  });
  return done;
}

template <class T>
void choose(const Launch& launch, const Tensor& features, HeadArguments p) {
  if (stream<T>(launch, features, p)) return;
  for_each_head<T>([&](auto instance) {
    using S = decltype(instance);
    if (S::P != features.size(3)) return;
    const Tiling tiles(kOp, features.size(0), p.height, p.width, S::kHeight, S::kWidth);
    p.tiles_x = tiles.x;
    p.tiles_y = tiles.y;
    if (p.unshuffle > 1) {
      const int bytes = S::shared_bytes(p.unshuffle);
      allow_shared_memory<head_pixels_kernel<S>>(kOp, S::shared_bytes(4), 1);
      head_pixels_kernel<S><<<tiles.blocks, S::kThreads, bytes, launch.stream()>>>(p);
      return;
    }
    static_assert(S::kSharedBytes <= 48 << 10);  // more would need an opt-in
    head_kernel<S><<<tiles.blocks, S::kThreads, S::kSharedBytes, launch.stream()>>>(p);
  });
}

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "silu") return Activation::silu;
  if (name == "relu") return Activation::relu;
  fail(kOp, "activation is ", name, "; it must be none, silu or relu");
}

Tensor head(const Tensor& image, const Tensor& packed, const std::optional<Tensor>& mean,
            int64_t channels, int64_t kernel, int64_t unshuffle, const std::string& activation) {
  check_channels(kOp, channels);
  check_head_kernel(kOp, kernel, unshuffle);
  check_image(kOp, image);
  if (image.size(2) < unshuffle || image.size(3) < unshuffle)
    fail(kOp, "image has shape ", shape_name(image), "; with unshuffle ", unshuffle,
         ", its height and width must be at least ", unshuffle);
  check_device(kOp, "packed", packed, "image", image);
  check_map_dtype(kOp, "packed", packed);
  const PackedSizes sizes = head_sizes(channels, kernel, unshuffle);
  check_packed(kOp, packed, packed, sizes);
  const int64_t c = padded(channels);
  HeadArguments p{};
  p.type = image_type(image.scalar_type());
  p.activation = activation_of(activation);
  if (mean) {
    check_mean(kOp, *mean, image);
    p.mean = static_cast<const float*>(mean->const_data_ptr());
  }

  const Launch launch(kOp, image);
  const int64_t height = (image.size(2) + unshuffle - 1) / unshuffle;
  const int64_t width = (image.size(3) + unshuffle - 1) / unshuffle;
  const Tensor features =
      torch::stable::new_empty(packed, {image.size(0), height, width, c}, packed.scalar_type());
  p.image = image.const_data_ptr();
  for (int i = 0; i < 4; ++i) p.stride[i] = image.stride(i);
  p.features = static_cast<uint16_t*>(features.mutable_data_ptr());
  p.weights = static_cast<const uint4*>(packed.const_data_ptr());
  p.bias = reinterpret_cast<const float*>(p.weights + sizes.weights / 8);
  p.kernel = static_cast<int>(kernel);
  p.unshuffle = static_cast<int>(unshuffle);
  p.image_height = static_cast<int>(image.size(2));
  p.image_width = static_cast<int>(image.size(3));
  p.height = static_cast<int>(height);
  p.width = static_cast<int>(width);
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
