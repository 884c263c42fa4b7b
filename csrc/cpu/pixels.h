// Tensors as the engine sees them: image i of a batch.
#pragma once

#include "../host_checks.h"
#include "network_tasks.h"

namespace espan::cpu {

// Of a dtype that the checks have passed.
inline Element element(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return Element::uint8;
    case ScalarType::Half:
      return Element::float16;
    case ScalarType::BFloat16:
      return Element::bfloat16;
    default:
      return Element::float32;
  }
}

// (N, 3, H, W) of any strides.
inline Pixels image_at(const Tensor& t, int64_t i) {
  const Pixels first{t.data_ptr(), t.stride(2), t.stride(3), t.stride(1), element(t.scalar_type())};
  return first.moved(i * t.stride(0));
}

// (N, H, W, P) contiguous.
inline Pixels map_at(const Tensor& t, int64_t i) {
  const int64_t p = t.size(3), row = t.size(2) * p;
  const Pixels first{t.data_ptr(), row, p, 1, element(t.scalar_type())};
  return first.moved(i * t.size(1) * row);
}

}  // namespace espan::cpu
