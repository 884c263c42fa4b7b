// The upsampling layer's kernel under the emulator.
#define ESPAN_EMULATOR
#include "cuda/upsample.cuh"

#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_upsample(Arguments& arguments) {
  const Buffer near = arguments.buffer(), last = arguments.buffer(), packed = arguments.buffer();
  const Buffer image = arguments.buffer(), flag = arguments.buffer();
  cuda::UpsampleArguments p{};
  p.near_channels = arguments.number();
  p.last_channels = arguments.number();
  p.type = static_cast<cuda::Image>(arguments.number());
  p.scale = arguments.number();
  const int batch = arguments.number();
  p.height = arguments.number();
  p.width = arguments.number();
  const unsigned order = arguments.number();
  const int channels = p.near_channels + p.last_channels;
  p.near = near.pointer<const uint16_t>();
  p.last = last.pointer<const uint16_t>();
  p.weights = packed.pointer<const uint4>();
  p.bias = reinterpret_cast<const float*>(p.weights + 9 * channels * S::kUpTiles);
  p.image = image.pointer<void>();
  p.flag = flag.pointer<int>();
  p.tiles_x = (p.width + S::kWidth - 1) / S::kWidth;
  p.tiles_y = (p.height + S::kHeight - 1) / S::kHeight;
  return run(
      batch * p.tiles_x * p.tiles_y, S::kThreads, S::shared_bytes(channels), order,
      {near.readable(), last.readable(), packed.readable(), image.writable(), flag.writable()},
      [&] { cuda::upsample_kernel<S>(p); });
}

template <class T>
void add_instances(std::vector<Instance>& list, bool bfloat16) {
  cuda::for_each_upsample<T>([&](auto s) {
    using S = decltype(s);
    list.push_back({{{"bfloat16", bfloat16},
                     {"up_tiles", S::kUpTiles},
                     {"height", S::kHeight},
                     {"bytes_of_80", S::shared_bytes(80)},
                     {"bytes_of_112", S::shared_bytes(112)}},
                    &run_upsample<S>});
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
