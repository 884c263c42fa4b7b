// The SPAN block of 64 channels under the emulator.
#define ESPAN_EMULATOR
#include "cuda/spab_wide.cuh"

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
  const uint64_t pixel = 2 * S::P, row = pixel * width;
  const auto size = [](int64_t n) { return static_cast<uint64_t>(n); };
  const cuda::TensorMap map{{x.pointer<const unsigned char>(),
                             {S::P, size(width), size(height), size(batch)},
                             {pixel, row, row * height},
                             {S::P, S::kCopied / 128, 1, 1}}};
  return run(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order,
             {x.readable(), packed.readable(), y.writable(), activation.writable()},
             [&] { cuda::spab_wide_kernel<S>(p, map); });
}

// The kernel of one kind of block, in both types.
template <class T>
Instance instance(bool bfloat16) {
  using cuda::Activation, cuda::GateKind;
  using S = cuda::SpabWide<T, Activation::ESPAN_ACTIVATION, GateKind::ESPAN_GATE>;
  return {{{"bfloat16", bfloat16}, {"channels", S::P}, {"shared_bytes", S::kSharedBytes}},
          &run_spab<S>};
}

}  // namespace

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = {instance<cuda::Float16>(false),
                                            instance<cuda::BFloat16>(true)};
  return all;
}

}  // namespace espan::emulator
