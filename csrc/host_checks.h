// Input checks shared by all ops.  Kernels take pointers and sizes and check nothing; these
// functions do, and their errors name the op, what was found and what is expected.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <sstream>
#include <stdexcept>
#include <string>

namespace espan {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A plain runtime_error: STD_TORCH_CHECK would prefix the message with this file's name and line.
template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Double:
      return "float64";
    default:
      return torch::headeronly::toString(dtype);
  }
}

inline std::string dtype_name(const Tensor& t) { return dtype_name(t.scalar_type()); }

inline std::string shape_name(const Tensor& t) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < t.dim(); ++d) text << (d ? ", " : "") << t.size(d);
  text << ']';
  return text.str();
}

inline std::string device_name(const Tensor& t) {
  if (t.is_cpu()) return "cpu";
  if (t.is_cuda()) return "cuda:" + std::to_string(t.get_device_index());
  return "another device";
}

inline void check_floating(const char* op, const char* name, const Tensor& t) {
  const ScalarType s = t.scalar_type();
  if (s != ScalarType::Float && s != ScalarType::Half && s != ScalarType::BFloat16 &&
      s != ScalarType::Double)
    fail(op, name, " has dtype ", dtype_name(t),
         "; it must be float32, float16, bfloat16 or float64");
}

inline void check_device(const char* op, const char* name, const Tensor& t, const char* like_name,
                         const Tensor& like) {
  if (device_name(t) != device_name(like))
    fail(op, name, " is on ", device_name(t), "; it must be on the device of ", like_name, ", ",
         device_name(like));
}

// `t` must have the shape, dtype and device of `like`; nothing is broadcast or converted.
inline void check_same(const char* op, const char* name, const Tensor& t, const char* like_name,
                       const Tensor& like) {
  check_device(op, name, t, like_name, like);
  if (t.scalar_type() != like.scalar_type())
    fail(op, name, " has dtype ", dtype_name(t), "; it must have the dtype of ", like_name, ", ",
         dtype_name(like));
  bool same_shape = t.dim() == like.dim();
  for (int64_t d = 0; same_shape && d < t.dim(); ++d) same_shape = t.size(d) == like.size(d);
  if (!same_shape)
    fail(op, name, " has shape ", shape_name(t), "; it must have the shape of ", like_name, ", ",
         shape_name(like));
}

inline void check_gate(const char* op, const Tensor& o, const Tensor& x) {
  check_floating(op, "o", o);
  check_same(op, "x", x, "o", o);
}

inline void check_gate_backward(const char* op, const Tensor& grad, const Tensor& o,
                                const Tensor& x) {
  check_gate(op, o, x);
  check_same(op, "grad", grad, "o", o);
}

// Calls f with a zero of the dtype of `t`, one of the four that check_floating accepts.
template <class F>
void for_dtype(const Tensor& t, F f) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Half:
      return f(Half{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:
      return f(double{});
  }
}

// Returns `t` if its memory layout is that of `dense`, otherwise a copy in that layout.  `dense`
// comes from empty_like, which preserves strides only if the tensor is non-overlapping and dense.
// So channels_last tensors are processed as flat arrays, and a strided view is copied.
inline Tensor laid_out_like(const Tensor& dense, const Tensor& t) {
  bool same = true;
  for (int64_t d = 0; same && d < t.dim(); ++d)
    same = t.size(d) == 1 || t.stride(d) == dense.stride(d);
  if (same || t.numel() == 0) return t;
  Tensor copy = torch::stable::empty_like(dense);
  torch::stable::copy_(copy, t);
  return copy;
}

}  // namespace espan
