// What the host functions of spab, head and tail share on CUDA: the tiles of a launch, what an
// instance must fit, and a launch with more than 48 KB of shared memory.
#pragma once

#include <atomic>
#include <limits>

#include "launch.h"

namespace espan::cuda {

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
