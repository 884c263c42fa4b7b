// Input checks and output allocation of the frequency-aware loss.
#pragma once

#include "frequency_loss.h"
#include "host_checks.h"

namespace espan {

inline void check_frequency_loss(const char* op, const Tensor& sr, const Tensor& hr) {
  const ScalarType s = sr.scalar_type();
  if (s != ScalarType::Float && s != ScalarType::Half && s != ScalarType::BFloat16)
    fail(op, "sr has dtype ", dtype_name(sr), "; it must be float32, float16 or bfloat16");
  if (sr.dim() != 4) fail(op, "sr has shape ", shape_name(sr), "; it must be (N, C, H, W)");
  if (sr.numel() == 0) fail(op, "sr has shape ", shape_name(sr), "; it must not be empty");
  // The kernels count pixels of one image in 32 bits.
  if (sr.size(2) > (1 << 30) || sr.size(3) > (1 << 30))
    fail(op, "sr has shape ", shape_name(sr), "; H and W must be at most 2^30");
  check_same(op, "hr", hr, "sr", sr);
}

inline void check_scale(const char* op, const Tensor& scale, const Tensor& sr) {
  check_device(op, "scale", scale, "sr", sr);
  if (scale.scalar_type() != ScalarType::Float || scale.numel() != 1)
    fail(op, "scale has dtype ", dtype_name(scale), " and shape ", shape_name(scale),
         "; it must be one float32 number");
}

// Calls f with a zero of the dtype of `t`, one of the three that check_frequency_loss accepts.
template <class F>
void for_loss_dtype(const Tensor& t, F f) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Half:
      return f(Half{});
    default:
      return f(BFloat16{});
  }
}

struct LossResult {
  Tensor loss, terms;
};

inline LossResult empty_loss(const Tensor& sr) {
  return {torch::stable::new_empty(sr, {}, ScalarType::Float),
          torch::stable::new_empty(sr, {3}, ScalarType::Float)};
}

// Kernels need contiguous rows: `t` itself if it is contiguous, otherwise a copy.
inline Tensor rows_of(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

}  // namespace espan
