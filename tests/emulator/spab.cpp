// The SPAN block's kernel under the emulator.
#define ESPAN_EMULATOR
#include "cuda/spab.cuh"

#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_spab(Arguments& arguments) {
  const Buffer x = arguments.buffer(), packed = arguments.buffer(), y = arguments.buffer();
  const Buffer activation = arguments.buffer();
  const int convs = arguments.number(), batch = arguments.number();
  const int height = arguments.number(), width = arguments.number();
  const auto function = static_cast<cuda::Activation>(arguments.number());
  const auto gate = static_cast<cuda::GateKind>(arguments.number());
  const unsigned order = arguments.number();
  cuda::SpabArguments p{};
  p.x = x.pointer<const uint16_t>();
  p.y = y.pointer<uint16_t>();
  p.activation = activation.pointer<uint16_t>();
  p.weights = packed.pointer<const uint4>();
  const bool learned = gate == cuda::GateKind::linear || gate == cuda::GateKind::tanh;
  p.bias = reinterpret_cast<const float*>(p.weights + convs * S::kWeights +
                                          (learned ? S::kGateWeights : 0));
  p.function = function;
  p.gate = gate;
  p.convs = convs;
  p.height = height;
  p.width = width;
  p.tiles_x = (width + S::kWidth - 1) / S::kWidth;
  p.tiles_y = (height + S::kHeight - 1) / S::kHeight;
  return run(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order,
             {x.readable(), packed.readable(), y.writable(), activation.writable()},
             [&] { cuda::spab_kernel<S>(p); });
}

// Calls f with each instance, or with a single one for the tests that need no more.
template <class T, class F>
void each(F f) {
#ifdef ESPAN_ONE_INSTANCE
  f(cuda::Spab<T, 32, 16, 2, 1, 2>{});
  f(cuda::Spab<T, 64, 6, 2, 2, 1>{});
#else
  cuda::for_each_spab<T>(f);
#endif
}

template <class T>
void add_instances(std::vector<Instance>& list, bool bfloat16) {
  each<T>([&](auto s) {
    using S = decltype(s);
    list.push_back({{{"bfloat16", bfloat16},
                     {"channels", S::P},
                     {"height", S::kHeight},
                     {"warps", S::kThreads / 32},
                     {"shared_bytes", S::kSharedBytes},
                     {"blocks_per_sm", S::kBlocksPerSm}},
                    &run_spab<S>});
  });
}

}  // namespace

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = [] {
    std::vector<Instance> list;
    add_instances<cuda::Float16>(list, false);
#ifndef ESPAN_ONE_INSTANCE
    add_instances<cuda::BFloat16>(list, true);
#endif
    return list;
  }();
  return all;
}

}  // namespace espan::emulator
