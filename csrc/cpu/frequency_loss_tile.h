// A tile of the frequency-aware loss, and one thread's scratch memory and tables for it.
#pragma once

#include "../frequency_loss.h"

namespace espan::cpu {

struct LossTile {
  int height, width;  // of the image
  int y, x;           // the tile's first pixel
  int rows, columns;  // multiples of 8, so the tile may cross the lower and right edges

  int inside_rows() const { return height - y < rows ? height - y : rows; }
  int inside_columns() const { return width - x < columns ? width - x : columns; }

  // Whether a row or column of the tile or its halo, once reflected, is the image's first or last.
  bool on_edge_y(int row) const { return on_edge(y + row, height); }
  bool on_edge_x(int column) const { return on_edge(x + column, width); }

 private:
  static bool on_edge(int i, int size) {
    const int at = reflected(i, size);
    return at == 0 || at == size - 1;
  }
};

// 104 KB in all, so that it stays in the second-level cache.
struct LossScratch {
  static constexpr int kRowBlocks = 4, kColumnBlocks = 16;
  // Vectors start up to 4 columns before the tile and end up to 23 columns after it.
  static constexpr int kBefore = 16, kPitch = kBefore + kColumnBlocks * kBlock + 32;
  static constexpr int kRows = kRowBlocks * kBlock;

  // The first pixel of a row of the tile; rows of the halo above are negative.
  float* d(int row) { return d_[row + kHalo] + kBefore; }
  float* rows(int row) { return rows_[row + kHalo] + kBefore; }
  float* signs(int row) { return signs_[row + kBlurRadius] + kBefore; }
  float* dct(int row) { return dct_[row] + kBefore; }
  float* edge_x() { return edge_x_ + kBefore; }

 private:
  alignas(64) float d_[kRows + 2 * kHalo][kPitch] = {};            // HR - SR
  alignas(64) float rows_[kRows + 2 * kHalo][kPitch] = {};         // d or signs, blurred along x
  alignas(64) float signs_[kRows + 2 * kBlurRadius][kPitch] = {};  // of d - blurred d
  alignas(64) float dct_[kRows][kPitch] = {};                      // gradient of the DCT term
  alignas(64) float edge_x_[kPitch] = {};
};

// The DCT after mirror_sums (frequency_loss_kernel.h): [m][l] is lane l ^ m's weight in lane l.
struct LossTables {
  alignas(64) float forward[4][16], transposed[4][16];

  static const LossTables& get() {
    static const LossTables tables;
    return tables;
  }

 private:
  LossTables() {
    constexpr int kFrequency[8] = {0, 2, 4, 6, 7, 5, 3, 1};  // of each lane
    const double pi = std::acos(-1.0);
    const auto dct = [pi](int k, int n) {
      return k ? std::cos(pi * (2 * n + 1) * k / 16) / 2 : std::sqrt(0.125);
    };
    const auto pixel = [](int lane) { return lane < 4 ? lane : 7 - lane; };
    for (int m = 0; m < 4; ++m)
      for (int l = 0; l < 16; ++l) {
        const int to = l % 8, from = to ^ m;
        forward[m][l] = static_cast<float>(dct(kFrequency[to], pixel(from)));
        transposed[m][l] = static_cast<float>(dct(kFrequency[from], pixel(to)));
      }
  }
};

}  // namespace espan::cpu
