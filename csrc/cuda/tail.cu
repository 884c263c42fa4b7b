// The tail on CUDA: checks, the choice of an instance and the launch around tail.cuh.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "feature_checks.h"
#include "images.h"
#include "tail.cuh"

namespace espan::cuda {
namespace {

constexpr char kOp[] = "espan::tail";

template <class S>
void run(const Launch& launch, int64_t batch, TailArguments p) {
  const Tiling tiles(kOp, batch, p.height, p.width, S::kHeight, S::kWidth);
  p.tiles_x = tiles.x;
  p.tiles_y = tiles.y;
  p.bias = reinterpret_cast<const float*>(p.weights + S::weights(p.side_count));
  allow_shared_memory<tail_kernel<S>>(kOp, S::kSharedBytes, S::kThreads == 128 ? 2 : 1);
  tail_kernel<S><<<tiles.blocks, S::kThreads, S::kSharedBytes, launch.stream()>>>(p);
}

template <class T>
void choose(const Launch& launch, const Tensor& last, const TailArguments& p) {
  const int up_tiles = p.scale > 2 ? 6 : 2;
  for_each_tail<T>([&](auto instance) {
    using S = decltype(instance);
    if (S::P == last.size(3) && S::kUpTiles == up_tiles) run<S>(launch, last.size(0), p);
  });
}

void check_like(const char* name, const Tensor& t, const Tensor& last) {
  check_same(kOp, name, t, "last", last);
  check_dense(kOp, name, t);
}

Tensor tail(const Tensor& head, const Tensor& first, const Tensor& last,
            const std::optional<Tensor>& activation, const Tensor& packed, int64_t channels,
            int64_t scale, ScalarType dtype, const std::optional<Tensor>& flag) {
  check_channels(kOp, channels);
  if (scale < 1 || scale > 4) fail(kOp, "scale is ", scale, "; it must be 1 to 4");
  check_features(kOp, "last", last, channels);
  check_like("head", head, last);
  check_like("first", first, last);
  if (activation) check_like("activation", *activation, last);
  check_device(kOp, "packed", packed, "last", last);
  TailArguments p{};
  p.side_count = activation ? 3 : 2;
  const int64_t c = padded(channels), up = scale > 2 ? 48 : 16;
  check_packed(kOp, packed, last, c * (9 * c + p.side_count * c + 9 * up), c + up);
  p.type = image_type(kOp, "dtype", dtype);
  if (flag) {
    check_device(kOp, "flag", *flag, "last", last);
    if (flag->scalar_type() != ScalarType::Int || flag->numel() != 1)
      fail(kOp, "flag must be one element in int32");
    p.flag = static_cast<int*>(flag->mutable_data_ptr());
  }

  const Launch launch(kOp, last);
  const int64_t n = last.size(0), height = scale * last.size(1), width = scale * last.size(2);
  const bool hwc = dtype == ScalarType::Byte;
  Tensor image = hwc ? torch::stable::new_empty(last, {n, height, width, 3}, dtype)
                     : torch::stable::new_empty(last, {n, 3, height, width}, dtype);
  p.last = static_cast<const uint16_t*>(last.const_data_ptr());
  p.sides[0] = static_cast<const uint16_t*>(head.const_data_ptr());
  p.sides[1] = static_cast<const uint16_t*>(first.const_data_ptr());
  if (activation) p.sides[2] = static_cast<const uint16_t*>(activation->const_data_ptr());
  p.weights = static_cast<const uint4*>(packed.const_data_ptr());
  p.image = image.mutable_data_ptr();
  p.scale = static_cast<int>(scale);
  p.height = static_cast<int>(last.size(1));
  p.width = static_cast<int>(last.size(2));
  if (last.scalar_type() == ScalarType::Half)
    choose<Float16>(launch, last, p);
  else
    choose<BFloat16>(launch, last, p);
  launch.finish();
  if (!hwc) return image;
  image = torch::stable::transpose(image, 1, 3);  // (N, 3, W, H)
  return torch::stable::transpose(image, 2, 3);
}

}  // namespace
}  // namespace espan::cuda

STABLE_TORCH_LIBRARY_IMPL(espan, CUDA, m) { m.impl("tail", TORCH_BOX(&espan::cuda::tail)); }
