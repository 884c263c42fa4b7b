// A 3x3 convolution of a tile of feature maps whose number of channels is known at run time.  The
// instances of a kernel then differ in their outputs only.
#pragma once

#include "conv.cuh"

namespace espan::cuda {

// Rows of `Columns` pixels in shared memory, as in Tile, of a multiple of 16 channels up to 112.
template <int Columns>
struct MapTile {
  int channels;

  __device__ __forceinline__ int row_bytes() const { return Columns * channels * 2; }
  // The offset of a chunk of 8 channels from the start of its row.
  __device__ __forceinline__ int offset(int column, int chunk) const {
    // Pixels start 8 or 24 banks apart, 16 banks, or in the same bank.
    const int swizzle = channels % 32 != 0   ? column >> 2 & 1
                        : channels % 64 != 0 ? column >> 1 & 3
                                             : (column & 1) << 2 | (column >> 1 & 3);
    return column * channels * 2 + ((chunk ^ swizzle) << 4);
  }

  // Copies a feature map of `count` channels to the channels from `first` on, with zeros outside
  // the image.
  template <int Threads>
  __device__ __forceinline__ void load(uint32_t to, int first, int count, const uint16_t* image,
                                       int top, int left, int rows, int height, int width,
                                       int thread) const {
    // i / chunks = i * reciprocal >> 16, exactly for i < 2^12.
    const int chunks = count / 8, reciprocal = 65536 / chunks + 1;
    for (int row = thread / 32; row < rows; row += Threads / 32) {
      const int y = top + row;
      const bool inside = y >= 0 && y < height;
      const uint16_t* line = image + static_cast<int64_t>(inside ? y : 0) * width * count;
      for (int i = thread % 32; i < Columns * chunks; i += 32) {
        const int column = i * reciprocal >> 16, chunk = i - column * chunks, x = left + column;
        const bool take = inside && x >= 0 && x < width;
        copy_async<16>(to + row * row_bytes() + offset(column, first / 8 + chunk),
                       line + (take ? static_cast<int64_t>(x) * count + chunk * 8 : 0), take);
      }
    }
  }

  // Adds the convolution to a strip; the arguments are those of Strip::convolve.
  template <class T, int Rows, int Tiles>
  __device__ __forceinline__ void convolve(Strip<Rows, Tiles>& strip, uint32_t tile, int column,
                                           const uint4* weights, int pairs,
                                           const Position& at) const {
    const int left = column + (at.lane & 15), half = at.lane >> 4, bytes = row_bytes();
    Taps<Tiles> next;
    next.load(weights, pairs, at.lane);
    int dx = 0, chunk = 0;
#pragma unroll 1
    for (int left_over = 3 * channels / 16; left_over > 0; --left_over) {
      const Taps<Tiles> taps = next;
      // The last step reloads its own weights, as in Strip::convolve.
      if (left_over > 1) weights += 3 * 32 * pairs;
      next.load(weights, pairs, at.lane);
      const uint32_t address = tile + offset(left + dx, chunk + half);
      strip.template step<T>(
          taps, [&](int row, uint32_t (&a)[4]) { load_matrix(a, address + row * bytes); });
      chunk += 2;
      if (chunk * 8 == channels) {
        chunk = 0;
        ++dx;
      }
    }
  }
};

}  // namespace espan::cuda
