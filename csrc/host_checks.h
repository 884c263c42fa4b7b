// Input checks shared by every op.  Kernels take pointers and sizes; whatever can be wrong with a
// tensor is found here, and the error names the op, what was found and what would be right.
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

// A plain runtime_error: STD_TORCH_CHECK would put this file's name and line before the message.
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

// `t` must agree with `like` in shape, dtype and device: nothing is broadcast or converted.
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

// Calls f with a zero of the dtype of `t`, which check_floating has passed.
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

// `t` itself where its elements lie in memory in the order of `dense`, else a copy that does.
// `dense` comes from empty_like, which keeps a tensor's strides exactly when it has no gaps and no
// overlaps: so two channels_last tensors are walked as flat arrays and a strided view is copied.
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
