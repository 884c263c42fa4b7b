// The point functions of the networks: activations, and the gates of a block.  They take values in
// float32, or pairs of 16-bit values as they leave the accumulators of a streamed kernel.
//
// SiLU and the sigmoid gate are functions of tanh(o/2).  Their argument is h = o/2, because the
// weights of the convolution before them are stored halved:
//     silu(o) = h + h tanh(h),    (o + x) (sigmoid(o) - 1/2) = (h + x/2) tanh(h).
// NaN and infinity pass through all of these functions, so that the check for values out of range
// at the end of the network sees them.
#pragma once

#include <type_traits>

#include "primitives.cuh"

namespace espan::cuda {

enum class Activation : int { none, silu, relu, mish };

// With h the result of the last 3x3 convolution of a block, x its input and g = conv1x1(h), the
// result of the block is (h + x) (sigmoid(h) - 1/2), (h + x) g, (h + x) tanh(g), h, or its
// activation.
enum class GateKind : int { sigmoid, linear, tanh, none, act };

// Whether the gate has a 1x1 convolution, and whether it adds the residual.
template <GateKind G>
constexpr bool kLearned = G == GateKind::linear || G == GateKind::tanh;
template <GateKind G>
constexpr bool kResidual = G == GateKind::sigmoid || kLearned<G>;

// silu(2 h)
__device__ __forceinline__ float silu_of_half(float h) {
  return __fmaf_rn(h, tanh_approximate(h), h);
}

__device__ __forceinline__ float gate_of_half(float h, float x) {
  return __fmaf_rn(x, 0.5f, h) * tanh_approximate(h);
}

// x tanh(log(1 + e)) = x n / (n + 2) with e = e^x and n = e (e + 2).  From x = 20 on, the factor is
// 1 in float32; the limit keeps n finite.  A NaN becomes the limit in e, but x is still a factor.
__device__ __forceinline__ float mish(float x) {
  constexpr float kLog2OfE = 1.44269504f, kLimit = 30.0f;
  const float e = exp2_approximate(fminf(x * kLog2OfE, kLimit));
  const float n = e * (e + 2.0f);
  return x * (n * reciprocal_approximate(n + 2.0f));
}

// The activation of two values.
template <class T, Activation A>
__device__ __forceinline__ uint32_t activated(float2 v) {
  if constexpr (A == Activation::silu) return T::pack(silu_of_half(v.x), silu_of_half(v.y));
  if constexpr (A == Activation::mish) return T::pack(mish(v.x), mish(v.y));
  const uint32_t pair = T::pack(v.x, v.y);
  if constexpr (A == Activation::relu) return relu_of_pair<T>(pair);
  return pair;
}

// The same of a pair.  SiLU in float16 is computed in pairs, which takes half as many instructions
// as float32.  With the gate, in an emulation on Set14 that costs 0.001 dB, in bfloat16 0.01 to
// 0.02.
template <class T, Activation A>
__device__ __forceinline__ uint32_t activated(uint32_t pair) {
  if constexpr (A == Activation::none) return pair;
  if constexpr (A == Activation::relu) return relu_of_pair<T>(pair);
  if constexpr (A == Activation::silu && std::is_same_v<T, Float16>)
    return fma_of_pairs(pair, tanh_of_pair(pair), pair);
  return activated<T, A>(T::unpack(pair));
}

// The result of a block of two values h, x and g of the gate G; unused ones may be anything.
template <class T, Activation A, GateKind G>
__device__ __forceinline__ uint32_t gated(float2 h, float2 x, float2 g) {
  if constexpr (G == GateKind::sigmoid)
    return T::pack(gate_of_half(h.x, x.x), gate_of_half(h.y, x.y));
  if constexpr (G == GateKind::linear) return T::pack((h.x + x.x) * g.x, (h.y + x.y) * g.y);
  if constexpr (G == GateKind::tanh)
    return T::pack((h.x + x.x) * tanh_approximate(g.x), (h.y + x.y) * tanh_approximate(g.y));
  return activated<T, G == GateKind::act ? A : Activation::none>(h);
}

// The same of pairs.
template <class T, Activation A, GateKind G>
__device__ __forceinline__ uint32_t gated(uint32_t h, uint32_t x, uint32_t g) {
  if constexpr (!kResidual<G>) return activated<T, G == GateKind::act ? A : Activation::none>(h);
  if constexpr (std::is_same_v<T, Float16>) {
    if constexpr (G == GateKind::sigmoid)
      return product_of_pairs(fma_of_pairs(x, T::pack(0.5f, 0.5f), h), tanh_of_pair(h));
    return product_of_pairs(sum_of_pairs(h, x), G == GateKind::tanh ? tanh_of_pair(g) : g);
  }
  return gated<T, A, G>(T::unpack(h), T::unpack(x), T::unpack(g));
}

}  // namespace espan::cuda
