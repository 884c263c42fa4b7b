// The frequency-aware loss: its constants and how an image is cut into tiles.
// espan_kernels/frequency_loss_reference.py defines what it computes.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define ESPAN_HOST_DEVICE __host__ __device__
#else
#define ESPAN_HOST_DEVICE
#endif

namespace espan {

// The 5x5 Gaussian of sigma 1.1, per axis: the weights at distances 1 and 2.  The centre weight is
// 1 - 2 * (kBlur1 + kBlur2).
constexpr float kBlur1 = 0.24446039891162386f;
constexpr float kBlur2 = 0.07076637133154645f;
// The gradient blurs twice (forward and transposed), so a pixel depends on 4 others on each side.
constexpr int kBlurRadius = 2;
constexpr int kHalo = 2 * kBlurRadius;

// cos(k pi / 16) / 2.  kCos4 is also sqrt(1/8), the first row of the DCT.
constexpr float kCos1 = 0.4903926402016152f, kCos2 = 0.46193976625564337f;
constexpr float kCos3 = 0.4157348061512726f, kCos4 = 0.3535533905932738f;
constexpr float kCos5 = 0.27778511650980114f, kCos6 = 0.19134171618254492f;
constexpr float kCos7 = 0.09754516100806417f;

constexpr int kBlock = 8;  // pixels along a DCT block

// The index, in [0, n), of pixel i of a row of n pixels padded by reflection.
ESPAN_HOST_DEVICE inline int reflected(int i, int n) {
  const int period = n > 1 ? 2 * (n - 1) : 1;
  i %= period;
  if (i < 0) i += period;
  return i < n ? i : period - i;
}

// One axis of an image in DCT blocks, cut into tiles as evenly as possible.  If there are at least
// two blocks and a tile may have three, every tile has at least two.  So the last block, which may
// cross the edge, shares a tile with the block that its reflected pixels come from.
struct Axis {
  int size, blocks, tiles;
  int each, larger;  // blocks per tile; the first `larger` tiles have one more

  ESPAN_HOST_DEVICE int begin(int tile) const {
    return (tile * each + (tile < larger ? tile : larger)) * kBlock;
  }
};

inline Axis cut(int64_t size, int max_blocks) {
  const int blocks = static_cast<int>((size + kBlock - 1) / kBlock);
  const int tiles = (blocks + max_blocks - 1) / max_blocks;
  return {static_cast<int>(size), blocks, tiles, blocks / tiles, blocks % tiles};
}

// The factor of each term's derivative, which is d for L2 and a sign for the others.
struct LossWeights {
  float pixel, hf, dct;
  bool squared;
};

struct LossOptions {
  double pixel, hf, dct;
  bool squared;

  LossWeights weights(double elements, double coefficients, double scale) const {
    return {static_cast<float>(scale * pixel * (squared ? 2 : 1) / elements),
            static_cast<float>(scale * hf / elements),
            static_cast<float>(scale * dct / coefficients), squared};
  }
};

}  // namespace espan
