// The image that tail and upsample return.
#pragma once

#include <optional>

#include "feature_checks.h"
#include "images.h"
#include "tail.cuh"

namespace espan::cuda {

// Checks the dtype of the image and the flag, and passes them to the kernel.
inline void set_image_type(const char* op, TailArguments& p, ScalarType dtype,
                           const std::optional<Tensor>& flag, const Tensor& last) {
  check_image_dtype(op, "dtype", dtype);
  p.type = image_type(dtype);
  if (!flag) return;
  check_flag(op, *flag, last);
  p.flag = static_cast<int*>(flag->mutable_data_ptr());
}

// An image for the kernel to write: (N, s H, s W, 3) if it is uint8, otherwise (N, 3, s H, s W).
inline Tensor new_image(TailArguments& p, const Tensor& last, int64_t scale, ScalarType dtype) {
  const int64_t n = last.size(0), height = scale * last.size(1), width = scale * last.size(2);
  const Tensor image = dtype == ScalarType::Byte
                           ? torch::stable::new_empty(last, {n, height, width, 3}, dtype)
                           : torch::stable::new_empty(last, {n, 3, height, width}, dtype);
  p.image = image.mutable_data_ptr();
  p.scale = static_cast<int>(scale);
  p.height = static_cast<int>(last.size(1));
  p.width = static_cast<int>(last.size(2));
  return image;
}

inline Tensor as_nchw(const Tensor& image) {
  if (image.scalar_type() != ScalarType::Byte) return image;
  const Tensor across = torch::stable::transpose(image, 1, 3);  // (N, 3, W, H)
  return torch::stable::transpose(across, 2, 3);
}

}  // namespace espan::cuda
