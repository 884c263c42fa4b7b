// The first convolution on CUDA: checks, the choice of an instance and the launch of head.cuh.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "feature_checks.h"
#include "head_hopper.cuh"
#include "images.h"
#include "instances.h"

namespace espan::cuda {
namespace {

constexpr char kOp[] = "espan::head";

// The segments of rows that the warpgroups of the streamed kernel compute: at most `groups` on each
// SM at once.  Minimises the rows of the busiest SM.
struct HeadStreaming {
  int strips, segments, rows, items, blocks;

  HeadStreaming(int64_t batch, int64_t height, int64_t width, int strip_width, int groups) {
    // Starting a segment takes as long as 3.4 rows of a 9x9 convolution, measured on an H200.
    constexpr int64_t kStart = 4, kMaxWaves = 16;
    const Limits limits(kOp);
    strips = Tiling(kOp, batch, height, width, 1, strip_width).x;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int64_t each = 1; each <= kMaxWaves * groups; ++each) {
      if (each > groups && each % groups != 0) continue;
      const int64_t most = std::max<int64_t>(each * limits.sms / (strips * batch), 1);
      const int64_t tall = (height + most - 1) / most, down = (height + tall - 1) / tall;
      const int64_t all = down * strips * batch, busiest = (all + limits.sms - 1) / limits.sms;
      // Fewer than `groups` segments do not fill the tensor cores.
      const int64_t time = tall * std::max<int64_t>(busiest, groups) + busiest * kStart;
      if (time >= least) continue;
      least = time;
      rows = static_cast<int>(tall);
      segments = static_cast<int>(down);
      items = static_cast<int>(all);
      blocks = static_cast<int>(std::min<int64_t>(all, limits.sms));
    }
  }
};

// Runs the streamed kernel if there is one for this GPU, kernel size and number of channels;
// returns whether it did.
template <class T>
bool stream(const Launch& launch, const Tensor& features, HeadArguments p) {
  bool done = false;
  for_each_head_stream<T>([&](auto instance) {
    using S = decltype(instance);
    constexpr auto kKernel = head_stream_kernel<S>;
    if (S::P != features.size(3) || S::kKernel != p.kernel || !can_stream<kKernel>(kOp)) return;
    const HeadStreaming plan(features.size(0), p.height, p.width, S::kValid, S::kGroups);
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
