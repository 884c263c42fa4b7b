// Shared by the host functions of spab, head and tail on CUDA: the tiles of a launch, the limits of
// the device, and launches with more than 48 KB of shared memory.
#pragma once

#include <atomic>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "launch.h"

namespace espan::cuda {

// How the image is cut into tiles, one per thread block.
struct Tiling {
  int x, y;
  unsigned blocks;

  Tiling(const char* op, int64_t batch, int64_t height, int64_t width, int tile_height,
         int tile_width) {
    constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
    // Tiles may extend past the image, and coordinates are 32-bit.
    if (height > kMax - 1024 || width > kMax - 1024)
      fail(op, "an image of ", height, " x ", width, " is too large");
    const int64_t across = (width + tile_width - 1) / tile_width;
    const int64_t down = (height + tile_height - 1) / tile_height;
    if (across > kMax / down || across * down > kMax / batch)
      fail(op, "a batch of ", batch, " images of ", height, " x ", width, " is too large");
    x = static_cast<int>(across);
    y = static_cast<int>(down);
    blocks = static_cast<unsigned>(across * down * batch);
  }
};

// The limits of the current device that an instance must fit.
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

  // Whether S::kBlocksPerSm blocks fit on an SM.
  template <class S>
  bool hold() const {
    return S::kSharedBytes <= block_bytes &&
           S::kBlocksPerSm * (S::kSharedBytes + reserved_bytes) <= sm_bytes;
  }
};

// Lets `kernel` use `bytes` of dynamic shared memory, once per device, and sets the SM's carveout
// to what `blocks` blocks need.  The rest remains L1, which caches the weights.
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

// How images are cut for kernels that stream strips (stream.cuh), with one block per SM: into
// segments of rows that minimise the time of the busiest SM.  Starting a segment takes as long as a
// few rows.
struct Streaming {
  int strips, segments, rows;
  unsigned blocks;

  Streaming(const char* op, int64_t batch, int64_t height, int64_t width, int strip_width) {
    // Loading the weights and filling and draining the rings takes as long as eight rows.
    constexpr int64_t kStart = 8, kMaxWaves = 16;
    const Limits limits(op);
    strips = Tiling(op, batch, height, width, 1, strip_width).x;
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int64_t waves = 1; waves <= kMaxWaves; ++waves) {
      const int64_t most = waves * limits.sms / (strips * batch);
      const int64_t tall = (height + std::max<int64_t>(most, 1) - 1) / std::max<int64_t>(most, 1);
      const int64_t down = (height + tall - 1) / tall, all = down * strips * batch;
      const int64_t time = (all + limits.sms - 1) / limits.sms * (tall + kStart);
      if (time >= least) continue;
      least = time;
      rows = static_cast<int>(tall);
      segments = static_cast<int>(down);
      blocks = static_cast<unsigned>(all);
    }
  }
};

// Whether the current GPU has wgmma and the library has this kernel's code for it, not only for an
// older architecture.  ESPAN_HOPPER=0 in the environment disables the streamed kernels, for
// comparison.
template <auto kernel>
bool can_stream(const char* op) {
  const char* wanted = std::getenv("ESPAN_HOPPER");
  if (wanted != nullptr && std::string_view(wanted) == "0") return false;
  int device = 0, major = 0, minor = 0;
  check(op, cudaGetDevice(&device));
  check(op, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  check(op, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
  if (major != 9 || minor != 0) return false;
  static const int ptx_version = [&] {
    cudaFuncAttributes attributes{};
    check(op, cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)));
    return attributes.ptxVersion;
  }();
  return ptx_version >= 90;
}

// A launch that may start while the previous kernel of the stream finishes.  The kernel waits for
// it with grid_dependency_wait().
template <auto kernel, class... Arguments>
void launch_after(const char* op, const Launch& launch, unsigned blocks, int threads, int bytes,
                  const Arguments&... arguments) {
  allow_shared_memory<kernel>(op, bytes, 1);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = bytes;
  config.stream = launch.stream();
  config.attrs = &early;
  config.numAttrs = 1;
  check(op, cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace espan::cuda
