// The head's streamed kernel under the emulator.
#define ESPAN_EMULATOR
#include "cuda/head_hopper.cuh"

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
  p.unshuffle = S::kUnshuffle;
  p.activation = static_cast<cuda::Activation>(arguments.number());
  const int batch = arguments.number();
  p.image_height = arguments.number();
  p.image_width = arguments.number();
  p.height = (p.image_height + p.unshuffle - 1) / p.unshuffle;
  p.width = (p.image_width + p.unshuffle - 1) / p.unshuffle;
  p.rows = arguments.number();
  p.blocks = arguments.number();
  const unsigned order = arguments.number();
  p.mean = mean.pointer<const float>();
  p.features = features.pointer<uint16_t>();
  constexpr int kFirst = (S::kKernel + 2) / 3 * 3 * S::kWeightRow;
  p.bias = reinterpret_cast<const float*>(packed.pointer<const uint4>() + kFirst / 16);
  p.weights = reinterpret_cast<const uint4*>(p.bias + S::P);
  p.kernel = S::kKernel;
  p.tiles_x = (p.width + S::kValid - 1) / S::kValid;
  p.tiles_y = (p.height + p.rows - 1) / p.rows;
  p.items = batch * p.tiles_x * p.tiles_y;
  return run(p.blocks, S::kThreads, S::kSharedBytes, order,
             {image.readable(), mean.readable(), packed.readable(), features.writable()},
             [&] { cuda::head_stream_kernel<S>(p); });
}

template <class T>
void add_instances(std::vector<Instance>& list, bool bfloat16) {
  const auto add = [&](auto s) {
    using S = decltype(s);
    list.push_back({{{"bfloat16", bfloat16},
                     {"channels", S::P},
                     {"kernel", S::kKernel},
                     {"unshuffle", S::kUnshuffle},
                     {"groups", S::kGroups},
                     {"shared_bytes", S::kSharedBytes}},
                    &run_head<S>});
  };
#ifdef ESPAN_ONE_TYPE
  add(cuda::HeadStream<T, 16, 3, 1, 2>{});
  add(cuda::HeadStream<T, 16, 3, 2, 2>{});
#else
  cuda::for_each_head_stream<T>(add);
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
