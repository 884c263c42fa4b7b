// The tail on CUDA: checks, the choice of an instance and the launch of tail.cuh.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "feature_checks.h"
#include "instances.h"
#include "new_image.h"
#include "tail_hopper.cuh"

namespace espan::cuda {
namespace {

constexpr char kOp[] = "espan::tail";

template <class S>
void run(const Launch& launch, int64_t batch, TailArguments p) {
  const Tiling tiles(kOp, batch, p.height, p.width, S::kHeight, S::kWidth);
  p.tiles_x = tiles.x;
  p.tiles_y = tiles.y;
  p.bias = reinterpret_cast<const float*>(p.weights + S::weights(p.side_count, p.last_kernel));
  allow_shared_memory<tail_kernel<S>>(kOp, S::kSharedBytes, S::kThreads == 128 ? 2 : 1);
  tail_kernel<S><<<tiles.blocks, S::kThreads, S::kSharedBytes, launch.stream()>>>(p);
}

// Runs the streamed kernel if there is one for this GPU and these arguments; returns whether it
// did.
template <class T>
bool stream(const Launch& launch, const Tensor& last, TailArguments p) {
  const int up_tiles = p.scale > 2 ? 6 : 2;
  bool done = false;
  for_each_tail_stream<T>([&](auto instance) {
    using S = decltype(instance);
    constexpr auto kKernel = tail_stream_kernel<S>;
    if (S::P != last.size(3) || S::kUpTiles != up_tiles || S::kSides != p.side_count) return;
    if (S::kLastKernel != p.last_kernel || !can_stream<kKernel>(kOp)) return;
    const Streaming plan(kOp, last.size(0), p.height, p.width, S::kValid);
    p.tiles_x = plan.strips;
    p.tiles_y = plan.segments;
    p.rows = plan.rows;
    constexpr int kTaps = S::kLastKernel * S::kLastKernel + S::kSides;
    constexpr int kWeights = kTaps * S::P * S::P / 8 + 9 * S::P * S::kUpTiles;
    p.bias = reinterpret_cast<const float*>(p.weights + kWeights);
    p.weights = reinterpret_cast<const uint4*>(p.bias + S::P + 8 * S::kUpTiles);
    launch_after<kKernel>(kOp, launch, plan.blocks, S::kThreads, S::kSharedBytes, p);
    done = true;
  });
  return done;
}

template <class T>
void choose(const Launch& launch, const Tensor& last, const TailArguments& p) {
  if (stream<T>(launch, last, p)) return;
  const int up_tiles = p.scale > 2 ? 6 : 2;
  for_each_tail<T>([&](auto instance) {
    using S = decltype(instance);
    if (S::P == last.size(3) && S::kUpTiles == up_tiles) run<S>(launch, last.size(0), p);
  });
}

Tensor tail(const Tensor& head, const Tensor& first, const Tensor& last,
            const std::optional<Tensor>& activation, const Tensor& packed, int64_t channels,
            int64_t scale, ScalarType dtype, const std::optional<Tensor>& flag,
            int64_t last_kernel) {
  check_channels(kOp, channels);
  check_scale(kOp, scale);
  if (last_kernel != 1 && last_kernel != 3)
    fail(kOp, "last_kernel is ", last_kernel, "; it must be 3 or 1");
  check_features(kOp, "last", last, channels);
  check_features_like(kOp, "head", head, "last", last);
  check_features_like(kOp, "first", first, "last", last);
  if (activation) check_features_like(kOp, "activation", *activation, "last", last);
  check_device(kOp, "packed", packed, "last", last);
  TailArguments p{};
  p.side_count = activation ? 3 : 2;
  p.last_kernel = static_cast<int>(last_kernel);
  check_packed(kOp, packed, last, tail_sizes(channels, scale, p.side_count, last_kernel));
  set_image_type(kOp, p, dtype, flag, last);

  const Launch launch(kOp, last);
  const Tensor image = new_image(p, last, scale, dtype);
  p.last = static_cast<const uint16_t*>(last.const_data_ptr());
  p.sides[0] = static_cast<const uint16_t*>(head.const_data_ptr());
  p.sides[1] = static_cast<const uint16_t*>(first.const_data_ptr());
  if (activation) p.sides[2] = static_cast<const uint16_t*>(activation->const_data_ptr());
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

STABLE_TORCH_LIBRARY_IMPL(espan, CUDA, m) { m.impl("tail", TORCH_BOX(&espan::cuda::tail)); }
