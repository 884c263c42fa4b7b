// The head's kernel under the emulator.
#define ESPAN_EMULATOR
#include "cuda/head.cuh"

#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_head(Arguments& arguments) {
  const Buffer image = arguments.buffer(), mean = arguments.buffer();
  const Buffer packed = arguments.buffer(), features = arguments.buffer();
  cuda::HeadArguments p{};
  p.image = reinterpret_cast<const void*>(arguments.number());
  for (int i = 0; i < 4; ++i) p.stride[i] = arguments.number();
  p.type = static_cast<cuda::Image>(arguments.number());
  const int kernel = arguments.number(), batch = arguments.number();
  p.unshuffle = arguments.number();
  p.activation = static_cast<cuda::Activation>(arguments.number());
  p.image_height = arguments.number();
  p.image_width = arguments.number();
  const int height = (p.image_height + p.unshuffle - 1) / p.unshuffle;
  const int width = (p.image_width + p.unshuffle - 1) / p.unshuffle;
  const unsigned order = arguments.number();
  p.mean = mean.pointer<const float>();
  p.features = features.pointer<uint16_t>();
  p.weights = packed.pointer<const uint4>();
  const int pixel = p.unshuffle == 1 ? 3 : S::pixel_bytes(p.unshuffle) / 2;
  p.bias = reinterpret_cast<const float*>(
      p.weights + (kernel + 2) / 3 * ((pixel * kernel + 15) / 16) * (3 * 16 * S::P / 8));
  p.kernel = kernel;
  p.height = height;
  p.width = width;
  p.tiles_x = (width + S::kWidth - 1) / S::kWidth;
  p.tiles_y = (height + S::kHeight - 1) / S::kHeight;
  const bool whole = p.unshuffle == 1;
  const int bytes = whole ? S::kSharedBytes : S::shared_bytes(p.unshuffle);
  return run(batch * p.tiles_x * p.tiles_y, S::kThreads, bytes, order,
             {image.readable(), mean.readable(), packed.readable(), features.writable()},
             [&] { whole ? cuda::head_kernel<S>(p) : cuda::head_pixels_kernel<S>(p); });
}

template <class T>
void add_instances(std::vector<Instance>& list, bool bfloat16) {
  cuda::for_each_head<T>([&](auto s) {
    using S = decltype(s);
    list.push_back({{{"bfloat16", bfloat16},
                     {"channels", S::P},
                     {"height", S::kHeight},
                     {"shared_bytes", S::shared_bytes(4)},
                     {"blocks_per_sm", 1}},
                    &run_head<S>});
  });
}

}  // namespace

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = [] {
    std::vector<Instance> list;
    add_instances<cuda::Float16>(list, false);
    add_instances<cuda::BFloat16>(list, true);
    return list;
  }();
  return all;
}

}  // namespace espan::emulator
