// The SPAN block on CUDA: checks, the choice of an instance and the launch of spab.cuh.
#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>

#include "feature_checks.h"
#include "instances.h"
#include "spab_hopper.cuh"

namespace espan::cuda {
namespace {

constexpr char kOp[] = "espan::spab";

// The activations and gates of the networks.
struct Kind {
  const char *activation, *gate;
  Activation function;
  GateKind kind;
};
constexpr Kind kKinds[] = {
    {"silu", "sigmoid", Activation::silu, GateKind::sigmoid},
    {"silu", "none", Activation::silu, GateKind::none},
    {"relu", "linear", Activation::relu, GateKind::linear},
    {"relu", "tanh", Activation::relu, GateKind::tanh},
    {"relu", "act", Activation::relu, GateKind::act},
    {"mish", "sigmoid", Activation::mish, GateKind::sigmoid},
};

Kind find_kind(const std::string& activation, const std::string& gate) {
  for (const Kind& k : kKinds)
    if (activation == k.activation && gate == k.gate) return k;
  fail(kOp, "activation is ", activation, " and gate is ", gate,
       "; they must be silu with sigmoid or none, relu with linear, tanh or act, or mish with "
       "sigmoid");
}

bool is_learned(GateKind g) { return g == GateKind::linear || g == GateKind::tanh; }

template <class S>
void run(const Launch& launch, const Tensor& x, SpabArguments p) {
  const Tiling tiles(kOp, x.size(0), p.height, p.width, S::kHeight, S::kWidth);
  p.tiles_x = tiles.x;
  p.tiles_y = tiles.y;
  p.bias = reinterpret_cast<const float*>(p.weights + p.convs * S::kWeights +
                                          (is_learned(p.gate) ? S::kGateWeights : 0));
  allow_shared_memory<spab_kernel<S>>(kOp, S::kSharedBytes, S::kBlocksPerSm);
  spab_kernel<S><<<tiles.blocks, S::kThreads, S::kSharedBytes, launch.stream()>>>(p);
}

// Runs the streamed kernel if there is one for this GPU, number of channels and kind of block;
// returns whether it did.
template <class T>
bool stream(const Launch& launch, const Tensor& x, SpabArguments p) {
  bool done = false;
  for_each_spab_stream<T>([&](auto instance) {
    using S = decltype(instance);
    constexpr auto kKernel = spab_stream_kernel<S>;
    if (S::P != x.size(3) || S::kActivation != p.function || S::kGate != p.gate) return;
    if (!can_stream<kKernel>(kOp)) return;
    const Streaming plan(kOp, x.size(0), p.height, p.width, S::kValid);
    p.tiles_x = plan.strips;
    p.tiles_y = plan.segments;
    p.rows = plan.rows;
    const int square = kLearned<S::kGate> ? S::P * S::P / 8 : 0;
    p.bias = reinterpret_cast<const float*>(p.weights + p.convs * 9 * S::P * S::P / 8 + square);
    p.weights = reinterpret_cast<const uint4*>(p.bias + (p.convs + kLearned<S::kGate>)*S::P);
    launch_after<kKernel>(kOp, launch, plan.blocks, S::kThreads, S::kSharedBytes, p);
    done = true;
  });
  return done;
}

// Runs the instance that fits and whose busiest SM has the fewest rows to compute.
template <class T>
void choose(const Launch& launch, const Tensor& x, const SpabArguments& p) {
  if (stream<T>(launch, x, p)) return;
  const Limits limits(kOp);
  int64_t fewest = 0;
  void (*best)(const Launch&, const Tensor&, SpabArguments) = nullptr;
  for_each_spab<T>([&](auto instance) {
    using S = decltype(instance);
    if (S::P != x.size(3) || !limits.hold<S>()) return;
    const Tiling tiles(kOp, x.size(0), p.height, p.width, S::kHeight, S::kWidth);
    const int64_t rows = (tiles.blocks + limits.sms - 1) / limits.sms * S::kRows;
    if (best != nullptr && rows >= fewest) return;
    best = run<S>;
    fewest = rows;
  });
  if (best == nullptr)
    fail(kOp, "the GPU has too little shared memory: ", limits.block_bytes, " bytes per block");
  best(launch, x, p);
}

std::tuple<Tensor, Tensor> spab(const Tensor& x, const Tensor& packed, int64_t channels,
                                int64_t convs, bool with_activation,
                                const std::string& activation_name, const std::string& gate) {
  check_channels(kOp, channels);
  check_convs(kOp, convs);
  const Kind kind = find_kind(activation_name, gate);
  check_features(kOp, "x", x, channels);
  check_device(kOp, "packed", packed, "x", x);
  check_packed(kOp, packed, x, spab_sizes(channels, convs, is_learned(kind.kind)));
  const Launch launch(kOp, x);
  const Tensor y = torch::stable::empty_like(x);
  const Tensor activation =
      with_activation ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  SpabArguments arguments{};
  arguments.x = static_cast<const uint16_t*>(x.const_data_ptr());
  arguments.y = static_cast<uint16_t*>(y.mutable_data_ptr());
  if (with_activation) arguments.activation = static_cast<uint16_t*>(activation.mutable_data_ptr());
  arguments.weights = static_cast<const uint4*>(packed.const_data_ptr());
  arguments.function = kind.function;
  arguments.gate = kind.kind;
  arguments.convs = static_cast<int>(convs);
  arguments.height = static_cast<int>(x.size(1));
  arguments.width = static_cast<int>(x.size(2));
  if (x.scalar_type() == ScalarType::Half)
    choose<Float16>(launch, x, arguments);
  else
    choose<BFloat16>(launch, x, arguments);
  launch.finish();
  return {y, activation};
}

}  // namespace
}  // namespace espan::cuda

STABLE_TORCH_LIBRARY_IMPL(espan, CUDA, m) { m.impl("spab", TORCH_BOX(&espan::cuda::spab)); }
