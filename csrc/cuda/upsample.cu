// The upsampling layer on CUDA: checks, the choice of an instance and the launch of upsample.cuh.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "instances.h"
#include "new_image.h"
#include "segments.h"
#include "upsample_hopper.cuh"

namespace espan::cuda {
namespace {

constexpr char kOp[] = "espan::upsample";

// Runs the streamed kernel if there is one for this GPU and scale; returns whether it did.
template <class T>
bool stream(const Launch& launch, const Tensor& last, UpsampleArguments p) {
  const int up_tiles = p.scale > 2 ? 6 : 2, channels = p.near_channels + p.last_channels;
  bool done = false;
  for_each_upsample_stream<T>([&](auto instance) {
    using S = decltype(instance);
    constexpr auto kKernel = upsample_stream_kernel<S>;
    if (S::P != channels || S::kUpTiles != up_tiles || !can_stream<kKernel>(kOp)) return;
    const Segments plan(kOp, last.size(0), p.height, p.width, S::kValid, S::kGroups, 4);
    p.tiles_x = plan.strips;
    p.tiles_y = plan.segments;
    p.rows = plan.rows;
    p.items = plan.items;
    p.blocks = plan.blocks;
    p.weights = reinterpret_cast<const uint4*>(p.bias + 8 * S::kUpTiles);
    launch_after<kKernel>(kOp, launch, plan.blocks, S::kThreads, S::kSharedBytes, p);
    done = true;
  });
  return done;
}

template <class T>
void choose(const Launch& launch, const Tensor& last, UpsampleArguments p) {
  const int up_tiles = p.scale > 2 ? 6 : 2, channels = p.near_channels + p.last_channels;
  p.bias = reinterpret_cast<const float*>(p.weights + 9 * channels * up_tiles);
  if (stream<T>(launch, last, p)) return;
  const Limits limits(kOp);
  bool done = false;
  for_each_upsample<T>([&](auto instance) {
    using S = decltype(instance);
    const int bytes = S::shared_bytes(channels);
    if (done || S::kUpTiles != up_tiles || bytes > limits.block_bytes) return;
    const Tiling tiles(kOp, last.size(0), p.height, p.width, S::kHeight, S::kWidth);
    p.tiles_x = tiles.x;
    p.tiles_y = tiles.y;
    allow_shared_memory<upsample_kernel<S>>(
        kOp, std::min(S::shared_bytes(48 + kMaxChannels), limits.block_bytes), 1);
    upsample_kernel<S><<<tiles.blocks, S::kThreads, bytes, launch.stream()>>>(p);
    done = true;
  });
}

Tensor upsample(const Tensor& near, const Tensor& last, const Tensor& packed, int64_t channels,
                int64_t scale, ScalarType dtype, const std::optional<Tensor>& flag) {
  check_channels(kOp, channels);
  check_scale(kOp, scale);
  check_features(kOp, "last", last, channels);
  check_device(kOp, "near", near, "last", last);
  check_features(kOp, "near", near, 3 * scale * scale);
  if (near.scalar_type() != last.scalar_type() || near.size(0) != last.size(0) ||
      near.size(1) != last.size(1) || near.size(2) != last.size(2))
    fail(kOp, "near has shape ", shape_name(near), " and dtype ", dtype_name(near),
         "; it must have the size and dtype of last, ", shape_name(last), " and ",
         dtype_name(last));
  check_device(kOp, "packed", packed, "last", last);
  check_packed(kOp, packed, last, upsample_sizes(channels, scale));
  UpsampleArguments p{};
  set_image_type(kOp, p, dtype, flag, last);

  const Launch launch(kOp, last);
  const Tensor image = new_image(p, last, scale, dtype);
  p.near = static_cast<const uint16_t*>(near.const_data_ptr());
  p.last = static_cast<const uint16_t*>(last.const_data_ptr());
  p.near_channels = static_cast<int>(near.size(3));
  p.last_channels = static_cast<int>(last.size(3));
  p.weights = static_cast<const uint4*>(packed.const_data_ptr());
  if (last.scalar_type() == ScalarType::Half)
    choose<Float16>(launch, last, p);
  else
    choose<BFloat16>(launch, last, p);
  launch.finish();
  return as_nchw(image);
}

}  // namespace
}  // namespace espan::cuda

STABLE_TORCH_LIBRARY_IMPL(espan, CUDA, m) { m.impl("upsample", TORCH_BOX(&espan::cuda::upsample)); }
