// Image i of a batch tensor, as Pixels.
#pragma once

#include "../host_checks.h"
#include "network_tasks.h"

namespace espan::cpu {

// The checks accept only uint8 and float32.
inline Element element_of(const Tensor& image) {
  return image.scalar_type() == ScalarType::Byte ? Element::uint8 : Element::float32;
}

// `t` is (N, 3, H, W) with any strides.
inline Pixels image_at(const Tensor& t, int64_t i) {
  const Pixels first{t.data_ptr(), t.stride(2), t.stride(3), t.stride(1), element_of(t)};
  return first.moved(i * t.stride(0));
}

}  // namespace espan::cpu
