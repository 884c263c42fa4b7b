// Shared by spab, head and tail: 3x3 convolutions of a tile of feature maps in shared memory, on
// the tensor cores.
//
// A warp computes a strip: 16 pixels wide, Rows high, Tiles x 8 output channels, all of it in
// registers (Rows x Tiles x 4 of them).  A step covers one column dx of taps and 16 input channels.
// Each row of the strip's input is loaded once (ldmatrix) and multiplied by the taps of all three
// dy, so a matrix load serves up to 3 Tiles mma.  With 32 channels and 10 rows a step has 12 matrix
// loads and 6 weight loads of 512 bytes for 120 mma: 77 bytes per mma.  An SM of an H100 moves 128
// bytes per cycle and issues at most one such mma, so the tensor cores are the bottleneck; beside
// its 120 mma the loop has 64 other instructions.
//
// Weights are not staged in shared memory.  They are stored in device memory in register order
// (espan_kernels/packing/cuda_fragments.py), and each warp reads them through L1.  The weights of a
// step are loaded during the previous step, which takes longer (120 cycles of all tensor cores for
// each of the SM's warps) than the latency of L2 (250 to 300 cycles).
#pragma once

#include "point.cuh"

namespace espan::cuda {

// The element type of an image.
enum class Image : int { uint8, float16, bfloat16, float32 };

// The output tiles that a lane stores together, as one vector of 8 or 16 bytes.
template <int P>
struct Group {
  static constexpr int kTiles = P % 32 == 0 ? 4 : 2;
  static constexpr int kChannels = 8 * kTiles;
  static constexpr int kBytes = 4 * kTiles;
};

// The values of one lane for one pixel and group, in pairs.
template <int Tiles>
struct Lane;
template <>
struct Lane<2> {
  using Vector = uint2;
  static __device__ __forceinline__ Vector zero() { return make_uint2(0, 0); }
  uint32_t pair[2];
  __device__ __forceinline__ Lane() {}
  __device__ __forceinline__ Lane(uint2 v) : pair{v.x, v.y} {}
  __device__ __forceinline__ Vector vector() const { return make_uint2(pair[0], pair[1]); }
};
template <>
struct Lane<4> {
  using Vector = uint4;
  static __device__ __forceinline__ Vector zero() { return make_uint4(0, 0, 0, 0); }
  uint32_t pair[4];
  __device__ __forceinline__ Lane() {}
  __device__ __forceinline__ Lane(uint4 v) : pair{v.x, v.y, v.z, v.w} {}
  __device__ __forceinline__ Vector vector() const {
    return make_uint4(pair[0], pair[1], pair[2], pair[3]);
  }
};

// Rows of `Columns` pixels of P channels, 2 bytes each, in shared memory.  The 16-byte chunks of a
// pixel are permuted by its column to avoid bank conflicts: for any 8 neighbouring pixels, chunk c
// is in 8 different groups of 4 banks (ldmatrix reads these together), and so are the 4 chunks that
// a quad of lanes stores, for any 2 neighbours.
template <int P, int Columns>
struct Tile {
  static constexpr int kPixel = 2 * P;
  static constexpr int kRow = Columns * kPixel;
  static constexpr int kChunks = P / 8;

  static __device__ __forceinline__ int swizzle(int column) {
    if constexpr (P == 64) return (column & 1) << 2 | (column >> 1 & 3);
    if constexpr (P % 64 == 32) return column >> 1 & 3;
    return column >> 2 & 1;
  }
  // The offset of a chunk from the start of its row.
  static __device__ __forceinline__ int offset(int column, int chunk) {
    return column * kPixel + ((chunk ^ swizzle(column)) << 4);
  }
};

// A lane computes pixels `pixel` and `pixel` + 8 of each row of the strip, and columns 2 `quad` and
// 2 `quad` + 1 of each tile.
struct Position {
  int lane, pixel, quad;
  explicit __device__ __forceinline__ Position(int lane)
      : lane(lane), pixel(lane >> 2), quad(lane & 3) {}
};

// The weights of one step: three dy, two tiles per vector.
template <int Tiles>
struct Taps {
  uint4 v[3][Tiles / 2];
  // Each dy has `pairs` vectors of 32 lanes; the warp's come first.
  __device__ __forceinline__ void load(const uint4* weights, int pairs, int lane) {
#pragma unroll
    for (int dy = 0; dy < 3; ++dy)
#pragma unroll
      for (int i = 0; i < Tiles / 2; ++i)
        v[dy][i] = load_global(weights + (dy * pairs + i) * 32 + lane);
  }
};

template <int Rows, int Tiles>
struct Strip {
  float value[Rows][Tiles][4];

  __device__ __forceinline__ void fill(const float* bias, const Position& at) {
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
      const float2 b = load_global(reinterpret_cast<const float2*>(bias) + 4 * j + at.quad);
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        value[r][j][0] = value[r][j][2] = b.x;
        value[r][j][1] = value[r][j][3] = b.y;
      }
    }
  }

  template <class T>
  __device__ __forceinline__ void multiply_row(int row, const uint32_t (&a)[4],
                                               const uint4 (&b)[Tiles / 2]) {
#pragma unroll
    for (int i = 0; i < Tiles / 2; ++i) {
      multiply<T>(value[row][2 * i], a, b[i].x, b[i].y);
      multiply<T>(value[row][2 * i + 1], a, b[i].z, b[i].w);
    }
  }

  // One step.  load(row, a) loads A for one of the strip's Rows + 2 input rows.
  template <class T, class Load>
  __device__ __forceinline__ void step(const Taps<Tiles>& taps, Load load) {
    uint32_t a[2][4];
    load(0, a[0]);
#pragma unroll
    for (int row = 0; row < Rows + 2; ++row) {
      if (row + 1 < Rows + 2) load(row + 1, a[(row + 1) & 1]);
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) {
        const int out = row - dy;
        if (out >= 0 && out < Rows) multiply_row<T>(out, a[row & 1], taps.v[dy]);
      }
    }
  }

  // The 3x3 convolution of a tile of P channels.  `tile` is the address of the row above the
  // strip's first row; `column` is the tile's column left of the strip's first column.
  template <class T, int P, int Columns>
  __device__ __forceinline__ void convolve(uint32_t tile, int column, const uint4* weights,
                                           int pairs, const Position& at) {
    using In = Tile<P, Columns>;
    constexpr int kSteps = 3 * (P / 16);
    const int left = column + (at.lane & 15), half = at.lane >> 4;
    Taps<Tiles> next;
    next.load(weights, pairs, at.lane);
#pragma unroll 1
    for (int s = 0; s < kSteps; ++s) {
      const Taps<Tiles> taps = next;
      // The last step reloads its own weights, which avoids a branch and an out-of-bounds read.
      next.load(weights + (s + 1 < kSteps ? s + 1 : s) * (3 * 32) * pairs, pairs, at.lane);
      const int dx = s / (P / 16), k = s % (P / 16);
      const uint32_t address = tile + In::offset(left + dx, 2 * k + half);
      step<T>(taps, [&](int row, uint32_t (&a)[4]) { load_matrix(a, address + row * In::kRow); });
    }
  }

  // The lane's two values in tile j of pixel at.pixel (`high` 0) or at.pixel + 8 (`high` 1).
  __device__ __forceinline__ float2 pair(int row, int j, int high) const {
    return make_float2(value[row][j][2 * high], value[row][j][2 * high + 1]);
  }
};

// `count` items cut into strips of `size`: where strip i starts, and the first item that it stores.
// If the last strip would pass the end, it starts earlier, and other strips store its first items.
struct Share {
  int begin, own;
  __device__ __forceinline__ Share(int i, int size, int count)
      : begin(i * size + size <= count ? i * size : count - size), own(i * size) {}
};

// The block's tile of the image and the warp's part of it.  S defines P, kWidth, kHeight and
// kTiles.  Its warps are 2 (columns of 16) x kRowWarps x channels.
template <class S>
struct Part {
  int height, width;
  int64_t image;  // the first pixel of the image in the batch
  int top, left;  // the tile's position in the image
  int column_warp, row_warp, channel_warp;
  Position at;

  __device__ __forceinline__ Part(int height, int width, int tiles_x, int tiles_y, int block,
                                  int thread)
      : height(height), width(width), at(thread % 32) {
    const int tile = block % (tiles_x * tiles_y), warp = thread / 32;
    image = static_cast<int64_t>(block / (tiles_x * tiles_y)) * height * width;
    left = tile % tiles_x * S::kWidth;
    top = tile / tiles_x * S::kHeight;
    column_warp = warp % 2;
    row_warp = warp / 2 % S::kRowWarps;
    channel_warp = warp / (2 * S::kRowWarps);
  }

  __device__ __forceinline__ bool inside_rows(int y) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(height);  // also false for y < 0
  }
  __device__ __forceinline__ bool inside(int y, int x) const {
    return inside_rows(y) && static_cast<unsigned>(x) < static_cast<unsigned>(width);
  }
  // The warp's first pair of output tiles.
  __device__ __forceinline__ int first_pair() const { return channel_warp * (S::kTiles / 2); }
  // The lane's first channel in the warp's group.
  __device__ __forceinline__ int channel(int group) const {
    return channel_warp * S::kTiles * 8 + group * Group<S::P>::kChannels +
           at.quad * (Group<S::P>::kBytes / 2);
  }
  // The index of an element in the feature maps.
  __device__ __forceinline__ int64_t element(int y, int x, int channel) const {
    return (image + static_cast<int64_t>(y) * width + x) * S::P + channel;
  }
};

// Copies a tile of feature maps from device memory, with zeros outside the image.
template <int P, int Columns, int Threads>
__device__ __forceinline__ void load_tile(uint32_t to, const uint16_t* image, int top, int left,
                                          int rows, int height, int width, int thread) {
  using In = Tile<P, Columns>;
  for (int row = thread / 32; row < rows; row += Threads / 32) {
    const int y = top + row;
    const bool inside = y >= 0 && y < height;
    const uint16_t* line = image + static_cast<int64_t>(inside ? y : 0) * width * P;
    for (int i = thread % 32; i < Columns * In::kChunks; i += 32) {
      const int column = i / In::kChunks, chunk = i % In::kChunks, x = left + column;
      const bool take = inside && x >= 0 && x < width;
      copy_async<16>(to + row * In::kRow + In::offset(column, chunk),
                     line + (take ? static_cast<int64_t>(x) * P + chunk * 8 : 0), take);
    }
  }
}

}  // namespace espan::cuda
