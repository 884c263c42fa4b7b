// The block on the CPU: checks, and its layers as the engine runs them.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../feature_checks.h"
#include "pixels.h"
#include "stream.h"

namespace espan::cpu {
namespace {

constexpr const char* kOp = "espan::spab";

std::tuple<Tensor, Tensor> spab(const Tensor& x, const Tensor& packed, int64_t channels,
                                int64_t convs, bool with_activation) {
  check_channels(kOp, channels);
  check_convs(kOp, convs);
  check_features(kOp, "x", x, channels);
  check_device(kOp, "packed", packed, "x", x);
  check_packed(kOp, packed, x, spab_forms(channels, convs));

  enum Outside { input, output, first_activation };
  Layers layers(static_cast<const float*>(packed.const_data_ptr()) + kUnused);
  const int start = layers.load(channels, input);
  int o = layers.conv(channels, start, Activation::silu);
  if (with_activation) layers.store(channels, o, first_activation);
  if (convs == 3) o = layers.conv(channels, o, Activation::silu);
  o = layers.conv(channels, o, Activation::gate, start);
  layers.store(channels, o, output);

  const Tensor y = torch::stable::empty_like(x);
  const Tensor activation =
      with_activation ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  const Stream stream(layers, x.size(1), x.size(2));
  for (int64_t i = 0; i < x.size(0); ++i) {
    std::vector<Pixels> outside{map_at(x, i), map_at(y, i)};
    if (with_activation) outside.push_back(map_at(activation, i));
    stream.run(outside);
  }
  return {y, activation};
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) { m.impl("spab", TORCH_BOX(&espan::cpu::spab)); }
