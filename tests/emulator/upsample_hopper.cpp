// The upsampling layer's streamed kernel under the emulator.
#define ESPAN_EMULATOR
#include "cuda/upsample_hopper.cuh"

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
  p.rows = arguments.number();
  p.blocks = arguments.number();
  const unsigned order = arguments.number();
  p.near = near.pointer<const uint16_t>();
  p.last = last.pointer<const uint16_t>();
  p.bias = reinterpret_cast<const float*>(packed.pointer<const uint4>() + 9 * S::P * S::kUpTiles);
  p.weights = reinterpret_cast<const uint4*>(p.bias + 8 * S::kUpTiles);
  p.image = image.pointer<void>();
  p.flag = flag.pointer<int>();
  p.tiles_x = (p.width + S::kValid - 1) / S::kValid;
  p.tiles_y = (p.height + p.rows - 1) / p.rows;
  p.items = batch * p.tiles_x * p.tiles_y;
  return run(
      p.blocks, S::kThreads, S::kSharedBytes, order,
      {near.readable(), last.readable(), packed.readable(), image.writable(), flag.writable()},
      [&] { cuda::upsample_stream_kernel<S>(p); });
}

template <class T>
void add_instances(std::vector<Instance>& list, bool bfloat16) {
  const auto add = [&](auto s) {
    using S = decltype(s);
    list.push_back({{{"bfloat16", bfloat16},
                     {"channels", S::P},
                     {"up_tiles", S::kUpTiles},
                     {"shared_bytes", S::kSharedBytes}},
                    &run_upsample<S>});
  };
#ifdef ESPAN_ONE_TYPE
  add(cuda::UpsampleStream<T, 48, 6>{});
#else
  cuda::for_each_upsample_stream<T>(add);
#endif
}

}  // namespace

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = [] {
    std::vector<Instance> list;
    add_instances<cuda::Float16>(list, false);
#ifndef ESPAN_ONE_TYPE
    add_instances<cuda::BFloat16>(list, true);
#endif
    return list;
  }();
  return all;
}

}  // namespace espan::emulator
