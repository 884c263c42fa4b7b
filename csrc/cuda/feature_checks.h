// What the host functions of spab, head and tail share: checks of feature maps and packed weights,
// in the words of espan_kernels/_features.py, and a launch with more than 48 KB of shared memory.
#pragma once

#include <atomic>
#include <limits>

#include "launch.h"

namespace espan::cuda {

constexpr int64_t kMaxChannels = 64;

inline int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

inline void check_channels(const char* op, int64_t channels) {
  if (channels < 1 || channels > kMaxChannels)
    fail(op, "channels is ", channels, "; it must be 1 to ", kMaxChannels);
}

inline void check_16_bits(const char* op, const char* name, const Tensor& t) {
  if (t.scalar_type() != ScalarType::Half && t.scalar_type() != ScalarType::BFloat16)
    fail(op, name, " has dtype ", dtype_name(t), "; on CUDA it must be float16 or bfloat16");
}

inline void check_not_empty(const char* op, const char* name, const Tensor& t) {
  if (t.numel() == 0) fail(op, name, " has shape ", shape_name(t), "; it must not be empty");
}

// 16-byte accesses start at a multiple of 16 bytes, which a view into a tensor may not do.
inline void check_dense(const char* op, const char* name, const Tensor& t) {
  if (!t.is_contiguous()) fail(op, name, " must be contiguous");
  if (reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 != 0)
    fail(op, name, " must begin at a multiple of 16 bytes");
}

inline void check_features(const char* op, const char* name, const Tensor& t, int64_t channels) {
  check_16_bits(op, name, t);
  const int64_t p = padded(channels);
  if (t.dim() != 4 || t.size(3) != p)
    fail(op, name, " has shape ", shape_name(t), "; it must be (N, H, W, ", p,
         "): channels last, rounded up to a multiple of 16");
  check_not_empty(op, name, t);
  check_dense(op, name, t);
}

inline void check_device(const char* op, const char* name, const Tensor& t, const char* like_name,
                         const Tensor& like) {
  if (device_name(t) != device_name(like))
    fail(op, name, " is on ", device_name(t), "; it must be on the device of ", like_name, ", ",
         device_name(like));
}

// `weights` and `biases` elements; `dtype_of` has the dtype that it must have.
inline void check_packed(const char* op, const Tensor& packed, const Tensor& dtype_of,
                         int64_t weights, int64_t biases) {
  if (packed.scalar_type() != dtype_of.scalar_type())
    fail(op, "packed has dtype ", dtype_name(packed), "; it must be ", dtype_name(dtype_of));
  const int64_t size = weights + 2 * biases;
  if (packed.dim() != 1 || packed.size(0) != size)
    fail(op, "packed has shape ", shape_name(packed),
         "; for these channels and this kernel it must have the shape [", size, "]");
  check_dense(op, "packed", packed);
}

// How the image is cut into tiles, one for each block.
struct Tiling {
  int x, y;
  unsigned blocks;

  Tiling(const char* op, int64_t batch, int64_t height, int64_t width, int tile_height,
         int tile_width) {
    constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
    // Tiles reach a little beyond the image, and pixels are counted in 32 bits along each side.
    if (height > kMost - 1024 || width > kMost - 1024)
      fail(op, "an image of ", height, " x ", width, " is too large");
    const int64_t across = (width + tile_width - 1) / tile_width;
    const int64_t down = (height + tile_height - 1) / tile_height;
    if (across > kMost / down || across * down > kMost / batch)
      fail(op, "a batch of ", batch, " images of ", height, " x ", width, " is too large");
    x = static_cast<int>(across);
    y = static_cast<int>(down);
    blocks = static_cast<unsigned>(across * down * batch);
  }
};

// What an instance must fit, of the current device.
struct Limits {
  int block_bytes = 0, sm_bytes = 0, reserved_bytes = 0, sms = 0;

  explicit Limits(const char* op) {
    int device = 0;
    check(op, cudaGetDevice(&device));
    const auto ask = [&](int& value, cudaDeviceAttr attribute) {
      check(op, cudaDeviceGetAttribute(&value, attribute, device));
    };
    ask(block_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    ask(sm_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    ask(reserved_bytes, cudaDevAttrReservedSharedMemoryPerBlock);
    ask(sms, cudaDevAttrMultiProcessorCount);
  }

  // Whether S::kBlocksPerSm blocks fit an SM.
  template <class S>
  bool hold() const {
    return S::kSharedBytes <= block_bytes &&
           S::kBlocksPerSm * (S::kSharedBytes + reserved_bytes) <= sm_bytes;
  }
};

// Allows `kernel` its dynamic shared memory, once on each device, and asks for so much of the SM's
// that `blocks` have room; what is left is L1, where the weights are.
template <auto kernel>
void allow_shared_memory(const char* op, int bytes, int blocks) {
  static std::atomic<uint64_t> allowed{0};
  int device = 0;
  check(op, cudaGetDevice(&device));
  const uint64_t bit = uint64_t{1} << device % 64;
  if (device < 64 && (allowed & bit)) return;
  const auto set = [&](cudaFuncAttribute attribute, int value) {
    check(op, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value));
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  const Limits limits(op);
  const int wanted = 100 * blocks * (bytes + limits.reserved_bytes) / limits.sm_bytes + 1;
  set(cudaFuncAttributePreferredSharedMemoryCarveout, std::min(wanted, 100));
  allowed |= bit;
}

}  // namespace espan::cuda
