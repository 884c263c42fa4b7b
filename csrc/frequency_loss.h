// The frequency-aware loss: its constants, how an image is cut into tiles, its input checks.  What
// it computes is in espan_kernels/frequency_loss_reference.py.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define ESPAN_HOST_DEVICE __host__ __device__
#else
#define ESPAN_HOST_DEVICE
#endif

namespace espan {

// The 5x5 Gaussian of sigma 1.1, per axis: the weights at distance 1 and 2; the centre has the
// rest.
constexpr float kBlur1 = 0.24446039891162386f;
constexpr float kBlur2 = 0.07076637133154645f;
// Blurred twice, once for the value and once transposed, a pixel depends on 4 others to each side.
constexpr int kBlurRadius = 2;
constexpr int kHalo = 2 * kBlurRadius;

// cos(k pi / 16) / 2; sqrt(1/8), the DCT's first row, is the fourth.
constexpr float kCos1 = 0.4903926402016152f, kCos2 = 0.46193976625564337f;
constexpr float kCos3 = 0.4157348061512726f, kCos4 = 0.3535533905932738f;
constexpr float kCos5 = 0.27778511650980114f, kCos6 = 0.19134171618254492f;
constexpr float kCos7 = 0.09754516100806417f;

constexpr int kBlock = 8;  // pixels along a DCT block

// Where pixel i of a row of n comes from if the row goes on by reflection.
ESPAN_HOST_DEVICE inline int reflected(int i, int n) {
  const int period = n > 1 ? 2 * (n - 1) : 1;
  i %= period;
  if (i < 0) i += period;
  return i < n ? i : period - i;
}

// One axis of an image in DCT blocks, cut into tiles as even as can be.  Of two or more blocks
// every tile has at least two, if it may have three: so the last block, which may reach over the
// edge, is in one tile with the one before, where its reflected pixels come from.
struct Axis {
  int size, blocks, tiles;
  int each, larger;  // blocks of a tile; how many tiles, the first, have one more

  ESPAN_HOST_DEVICE int begin(int tile) const {
    return (tile * each + (tile < larger ? tile : larger)) * kBlock;
  }
};

inline Axis cut(int64_t size, int most_blocks) {
  const int blocks = static_cast<int>((size + kBlock - 1) / kBlock);
  const int tiles = (blocks + most_blocks - 1) / most_blocks;
  return {static_cast<int>(size), blocks, tiles, blocks / tiles, blocks % tiles};
}

// What the derivative of each term, d for L2 and signs for the others, is multiplied by.
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
