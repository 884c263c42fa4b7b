// Input checks shared by head, spab and tail: feature maps, images and packed weights.  The
// messages match those of espan_kernels/_checks.py.
#pragma once

#include "../host_checks.h"

namespace espan::cuda {

constexpr int64_t kMaxChannels = 64;
constexpr int64_t kMaxHeadKernel = 11;

inline int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

inline void check_channels(const char* op, int64_t channels) {
  if (channels < 1 || channels > kMaxChannels)
    fail(op, "channels is ", channels, "; it must be 1 to ", kMaxChannels);
}

inline void check_map_dtype(const char* op, const char* name, const Tensor& t) {
  const ScalarType s = t.scalar_type();
  if (s != ScalarType::Half && s != ScalarType::BFloat16)
    fail(op, name, " has dtype ", dtype_name(t), "; on CUDA it must be float16 or bfloat16");
}

inline void check_image_dtype(const char* op, const char* name, ScalarType dtype) {
  if (dtype != ScalarType::Byte && dtype != ScalarType::Half && dtype != ScalarType::BFloat16 &&
      dtype != ScalarType::Float)
    fail(op, name, " is ", dtype_name(dtype), "; it must be uint8, float16, bfloat16 or float32");
}

inline void check_image(const char* op, const Tensor& image) {
  check_image_dtype(op, "the dtype of image", image.scalar_type());
  if (image.dim() != 4 || image.size(1) != 3 || image.numel() == 0)
    fail(op, "image has shape ", shape_name(image), "; it must be (N, 3, H, W) and not empty");
}

inline void check_contiguous(const char* op, const char* name, const Tensor& t) {
  if (!t.is_contiguous()) fail(op, name, " must be contiguous");
}

// The kernels load vectors of 16 bytes, but a view into a tensor may start anywhere.
inline void check_aligned(const char* op, const char* name, const Tensor& t) {
  if (reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 != 0)
    fail(op, name, " must be aligned to 16 bytes");
}

inline void check_features(const char* op, const char* name, const Tensor& t, int64_t channels) {
  check_map_dtype(op, name, t);
  const int64_t p = padded(channels);
  if (t.dim() != 4 || t.size(3) != p)
    fail(op, name, " has shape ", shape_name(t), "; it must be (N, H, W, ", p,
         "): channels last, padded to a multiple of 16");
  if (t.numel() == 0) fail(op, name, " has shape ", shape_name(t), "; it must not be empty");
  check_contiguous(op, name, t);
  check_aligned(op, name, t);
}

inline void check_features_like(const char* op, const char* name, const Tensor& t,
                                const char* like_name, const Tensor& like) {
  check_same(op, name, t, like_name, like);
  check_contiguous(op, name, t);
  check_aligned(op, name, t);
}

inline void check_head_kernel(const char* op, int64_t kernel, int64_t unshuffle) {
  if (kernel % 2 == 0 || kernel < 1 || kernel > kMaxHeadKernel)
    fail(op, "kernel is ", kernel, "; it must be odd, 1 to ", kMaxHeadKernel);
  if (unshuffle != 1 && unshuffle != 2 && unshuffle != 4)
    fail(op, "unshuffle is ", unshuffle, "; it must be 1, 2 or 4");
  if (unshuffle > 1 && kernel != 3)
    fail(op, "kernel is ", kernel, "; with unshuffle ", unshuffle, " it must be 3");
}

inline void check_mean(const char* op, const Tensor& mean, const Tensor& image) {
  check_device(op, "mean", mean, "image", image);
  if (mean.scalar_type() != ScalarType::Float || mean.dim() != 1 || mean.numel() != 3 ||
      !mean.is_contiguous())
    fail(op, "mean must be contiguous float32 values of shape [3]");
}

inline void check_scale(const char* op, int64_t scale) {
  if (scale < 1 || scale > 4) fail(op, "scale is ", scale, "; it must be 1 to 4");
}

inline void check_flag(const char* op, const Tensor& flag, const Tensor& last) {
  check_device(op, "flag", flag, "last", last);
  if (flag.scalar_type() != ScalarType::Int || flag.numel() != 1)
    fail(op, "flag must be one int32 element");
}

inline void check_convs(const char* op, int64_t convs) {
  if (convs != 2 && convs != 3) fail(op, "convs is ", convs, "; it must be 2 or 3");
}

// The number of values of each kind in a packed tensor, in storage order.
struct PackedSizes {
  int64_t weights;       // in the dtype of the tensor, for mma.sync
  int64_t biases;        // float32
  int64_t streamed = 0;  // the weights again, for the streamed kernels
};

// The weights in the order of stream.cuh: of a 3x3 convolution between feature maps, and of the
// upsampling convolution.
inline int64_t streamed(int64_t p) { return (p > 32 ? 9 : 15) * p * p; }
inline int64_t streamed_up(int64_t p, int64_t outputs, bool apart) {
  return (apart ? 9 : 15) * p * outputs;
}

// `learned` is whether the gate has a 1x1 convolution.
inline PackedSizes spab_sizes(int64_t channels, int64_t convs, bool learned) {
  const int64_t p = padded(channels), square = learned ? p * p : 0;
  return {convs * 9 * p * p + square, (convs + learned) * p, convs * streamed(p) + square};
}

inline PackedSizes head_sizes(int64_t channels, int64_t kernel, int64_t unshuffle) {
  const int64_t p = padded(channels),
                pixel = unshuffle == 1 ? 3 : padded(3 * unshuffle * unshuffle);
  const int64_t run = (pixel * kernel + 15) / 16 * 16 * p;
  return {(kernel + 2) / 3 * 3 * run, p, kernel > 1 && unshuffle < 4 ? kernel * run : 0};
}

// With a 3x3 of `last`, there are streamed kernels for at most 48 channels, with a 1x1 for all.
inline PackedSizes tail_sizes(int64_t channels, int64_t scale, int64_t sides, int64_t last_kernel) {
  const int64_t p = padded(channels), up = scale > 2 ? 48 : 16;
  const int64_t last = last_kernel * last_kernel * p * p, up_stream = streamed_up(p, up, p > 48);
  int64_t stream = 0;
  if (last_kernel == 1) stream = last + sides * p * p + up_stream;
  if (last_kernel == 3 && p <= 48) stream = streamed(p) + sides * p * p + up_stream;
  return {last + p * (sides * p + 9 * up), p + up, stream};
}

inline PackedSizes upsample_sizes(int64_t channels, int64_t scale) {
  const int64_t inputs = padded(3 * scale * scale) + padded(channels), up = scale > 2 ? 48 : 16;
  return {9 * inputs * up, up, scale > 2 ? streamed_up(inputs, up, inputs > 96) : 0};
}

// `packed` must have the dtype of `dtype_of`.
inline void check_packed(const char* op, const Tensor& packed, const Tensor& dtype_of,
                         const PackedSizes& sizes) {
  if (packed.scalar_type() != dtype_of.scalar_type())
    fail(op, "packed has dtype ", dtype_name(packed), "; it must be ", dtype_name(dtype_of));
  const int64_t size = sizes.weights + 2 * sizes.biases + sizes.streamed;
  if (packed.dim() != 1 || packed.size(0) != size)
    fail(op, "packed has shape ", shape_name(packed),
         "; for these channels and this kernel it must have the shape [", size, "]");
  check_contiguous(op, "packed", packed);
  check_aligned(op, "packed", packed);
}

}  // namespace espan::cuda
