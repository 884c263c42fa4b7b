// The SPAN block's streamed kernel under the emulator.
#define ESPAN_EMULATOR
#include "cuda/spab_hopper.cuh"

#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_spab(Arguments& arguments) {
  const Buffer x = arguments.buffer(), packed = arguments.buffer(), y = arguments.buffer();
  const Buffer activation = arguments.buffer();
  const int convs = arguments.number(), batch = arguments.number();
  const int height = arguments.number(), width = arguments.number(), rows = arguments.number();
  const unsigned order = arguments.number();
  cuda::SpabArguments p{};
  p.x = x.pointer<const uint16_t>();
  p.y = y.pointer<uint16_t>();
  p.activation = activation.pointer<uint16_t>();
  const int learned = cuda::kLearned<S::kGate>;
  p.bias = reinterpret_cast<const float*>(packed.pointer<const uint4>() +
                                          (convs * 9 + learned) * S::P * S::P / 8);
  p.weights = reinterpret_cast<const uint4*>(p.bias + (convs + learned) * S::P);
  p.convs = convs;
  p.height = height;
  p.width = width;
  p.rows = rows;
  p.tiles_x = (width + S::kValid - 1) / S::kValid;
  p.tiles_y = (height + rows - 1) / rows;
  return run(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order,
             {x.readable(), packed.readable(), y.writable(), activation.writable()},
             [&] { cuda::spab_stream_kernel<S>(p); });
}

// The kernels of one kind of block: a module of all takes a minute to compile.
template <class T>
void add_instances(std::vector<Instance>& list, bool bfloat16) {
  using cuda::Activation, cuda::GateKind;
  cuda::for_each_width<T, Activation::ESPAN_ACTIVATION, GateKind::ESPAN_GATE>([&](auto s) {
    using S = decltype(s);
#ifdef ESPAN_WIDTH
    if constexpr (S::P == ESPAN_WIDTH)
#endif
      list.push_back(
          {{{"bfloat16", bfloat16}, {"channels", S::P}, {"shared_bytes", S::kSharedBytes}},
           &run_spab<S>});
  });
}

}  // namespace

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = [] {
    std::vector<Instance> list;
    add_instances<cuda::Float16>(list, false);
#ifndef ESPAN_WIDTH
    add_instances<cuda::BFloat16>(list, true);
#endif
    return list;
  }();
  return all;
}

}  // namespace espan::emulator
