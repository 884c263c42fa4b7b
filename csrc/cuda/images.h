// The dtypes of images, for head and tail.
#pragma once

#include "../host_checks.h"
#include "conv.cuh"

namespace espan::cuda {

inline Image image_type(const char* op, const char* name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return Image::uint8;
    case ScalarType::Half:
      return Image::float16;
    case ScalarType::BFloat16:
      return Image::bfloat16;
    case ScalarType::Float:
      return Image::float32;
    default:
      fail(op, name, " is ", torch::headeronly::toString(dtype),
           "; it must be uint8, float16, bfloat16 or float32");
  }
}

}  // namespace espan::cuda
