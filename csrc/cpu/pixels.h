// Tensors as the engine sees them: image i of a batch.
#pragma once

#include "../host_checks.h"
#include "network_tasks.h"

namespace espan::cpu {

// The checks have passed uint8 and float32 only.
inline Element element_of(const Tensor& image) {
  return image.scalar_type() == ScalarType::Byte ? Element::uint8 : Element::float32;
}

// (N, 3, H, W) of any strides.
inline Pixels image_at(const Tensor& t, int64_t i) {
  const Pixels first{t.data_ptr(), t.stride(2), t.stride(3), t.stride(1), element_of(t)};
  return first.moved(i * t.stride(0));
}

}  // namespace espan::cpu
