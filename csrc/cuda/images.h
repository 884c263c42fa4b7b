// Image dtypes of head and tail.
#pragma once

#include "../host_checks.h"
#include "conv.cuh"

namespace espan::cuda {

// `dtype` is one that check_image_dtype accepts.
inline Image image_type(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return Image::uint8;
    case ScalarType::Half:
      return Image::float16;
    case ScalarType::BFloat16:
      return Image::bfloat16;
    default:
      return Image::float32;
  }
}

}  // namespace espan::cuda
