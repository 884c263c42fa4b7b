// The first convolution in one launch: an RGB image of any layout to feature maps, with a kernel of
// kernel x kernel, on the tensor cores.
//
// In shared memory an image row is r, g, b, r, g, b, ... in 16 bits, so one row of the window is
// 3 x kernel contiguous values.  A step covers 16 of them and three rows of taps, as in a 3x3
// convolution of feature maps.  Windows start 6 bytes apart, but ldmatrix needs multiples of 16, so
// each lane loads its own pairs of values, and a second copy of the image, shifted by one value,
// aligns the pairs of odd pixels.  The lanes of a warp read different banks or the same word, so a
// load is one wavefront.  A 9x9 kernel takes 6 steps for 243 products, as many mma as a 3x3
// convolution of 32 channels.
#pragma once

#include "conv.cuh"

namespace espan::cuda {

struct HeadArguments {
  const void* image;
  int64_t stride[4];  // of N, C, H, W, in elements
  Image type;
  const float* mean;  // or null
  uint16_t* features;
  const uint4* weights;
  const float* bias;
  int kernel, height, width, tiles_x, tiles_y;
  int rows, items, blocks;  // for head_hopper.cuh: rows per segment, segments, blocks <= segments
};

// The parameters are those of Spab, except that a warp computes Rows rows.
template <class T_, int P_, int Rows_, int RowWarps_, int ChannelWarps_, int BlocksPerSm_>
struct Head {
  using T = T_;
  static constexpr int P = P_, kRows = Rows_, kHeight = Rows_ * RowWarps_, kWidth = 32;
  static constexpr int kRowWarps = RowWarps_, kBlocksPerSm = BlocksPerSm_;
  static constexpr int kThreads = 64 * kRowWarps * ChannelWarps_;
  static constexpr int kTiles = P / 8 / ChannelWarps_;
  static constexpr int kPairs = P / 16;
  // For kernels up to 11: 12 rows of taps; 32 + 10 pixels and what the last step reads past them.
  static constexpr int kImageRows = kHeight + 11, kColumns = 48;
  static constexpr int kRow = kColumns * 6;
  // The copies start 16 banks apart: even pixels use 13 banks of one, odd pixels 13 of the other.
  static constexpr int kCopy = (kImageRows * kRow + 63) / 128 * 128 + 64;
  static constexpr int kSharedBytes = 2 * kCopy;
};

template <class T, class F>
void for_each_head(F f) {
  f(Head<T, 16, 8, 2, 1, 2>{});
  f(Head<T, 32, 8, 2, 1, 2>{});
  f(Head<T, 48, 4, 4, 1, 1>{});
  f(Head<T, 64, 8, 2, 2, 1>{});
}

template <class S>
struct HeadWork : Part<S> {
  using T = typename S::T;
  using Base = Part<S>;
  using Base::at, Base::channel, Base::column_warp, Base::element, Base::first_pair;
  using Base::inside, Base::left, Base::row_warp, Base::top;
  const HeadArguments& p;
  int groups, runs;  // groups of three rows of taps; runs of 16 values in a row

  __device__ __forceinline__ HeadWork(const HeadArguments& p, int block, int thread)
      : Base(p.height, p.width, p.tiles_x, p.tiles_y, block, thread),
        p(p),
        groups((p.kernel + 2) / 3),
        runs((3 * p.kernel + 15) / 16) {}

  // Loads the image tile and its halo, as 16-bit values in two copies.  `widen` converts an element
  // to float.
  template <class V, class Widen>
  __device__ __forceinline__ void load_image(uint32_t to, int thread, Widen widen) const {
    const int radius = p.kernel / 2, rows = S::kHeight + 3 * groups - 1;
    const int64_t n = this->image / (static_cast<int64_t>(p.height) * p.width);
    const V* image = static_cast<const V*>(p.image) + n * p.stride[0];
    float mean[3] = {0, 0, 0};
    if (p.mean != nullptr)
      for (int c = 0; c < 3; ++c) mean[c] = load_global(p.mean + c);
    for (int row = thread / 32; row < rows; row += S::kThreads / 32)
#pragma unroll
      for (int first = 0; first < S::kColumns; first += 32) {
        const int column = first + at.lane, y = top - radius + row, x = left - radius + column;
        const bool wanted = column < S::kColumns, real = wanted && inside(y, x);
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          float v = 0;
          if (real)
            v = widen(load_global(image + c * p.stride[1] + y * p.stride[2] + x * p.stride[3])) -
                mean[c];
          const auto bits = static_cast<uint16_t>(T::pack(v, 0));
          const uint32_t place = to + row * S::kRow + (column * 3 + c) * 2;
          store_shared(place, bits, wanted);
          store_shared(place + S::kCopy - 2, bits, wanted && column + c > 0);
        }
      }
  }

  __device__ __forceinline__ void load_image(uint32_t to, int thread) const {
    switch (p.type) {
      case Image::uint8:
        return load_image<uint8_t>(to, thread, [](uint8_t v) { return v / 255.0f; });
      case Image::float16:
        return load_image<uint16_t>(to, thread, [](uint16_t v) { return Float16::unpack(v).x; });
      case Image::bfloat16:
        return load_image<uint16_t>(to, thread, [](uint16_t v) { return BFloat16::unpack(v).x; });
      default:
        return load_image<float>(to, thread, [](float v) { return v; });
    }
  }

  __device__ __forceinline__ void convolve(uint32_t image) const {
    constexpr int kGroup = Group<S::P>::kTiles;
    const int first_row = row_warp * S::kRows, first_column = column_warp * 16;
    Strip<S::kRows, S::kTiles> strip;
    strip.fill(p.bias + first_pair() * 16, at);

    // Value 2 quad of the lane's first pixel, in the copy where its index is even.
    const int pixel = first_column + at.pixel, odd = pixel & 1;
    uint32_t address =
        image + first_row * S::kRow + odd * S::kCopy + (pixel * 3 - odd + 2 * at.quad) * 2;
    const uint4* weights = p.weights + first_pair() * 32;
    Taps<S::kTiles> next;
    next.load(weights, S::kPairs, at.lane);
    int run = 0;
#pragma unroll 1
    for (int left_over = groups * runs; left_over > 0; --left_over) {
      const Taps<S::kTiles> taps = next;
      // The last step reloads its own weights, as in Strip::convolve.
      if (left_over > 1) weights += 3 * 32 * S::kPairs;
      next.load(weights, S::kPairs, at.lane);
      strip.template step<T>(taps, [&](int row, uint32_t (&a)[4]) {
        const uint32_t from = address + row * S::kRow;
        load_shared(from, a[0]);
        load_shared(from + 8 * 6, a[1]);  // 8 pixels on
        load_shared(from + 8 * 2, a[2]);  // 8 values on
        load_shared(from + 8 * 6 + 8 * 2, a[3]);
      });
      address += 16 * 2;
      if (++run == runs) {
        run = 0;
        address += 3 * S::kRow - runs * (16 * 2);
      }
    }
    const int tile_top = recompute(top), tile_left = recompute(left);

#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const int y = tile_top + first_row + r;
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int x = tile_left + pixel + 8 * high;
        if (y >= p.height || x >= p.width) continue;
#pragma unroll
        for (int g = 0; g < S::kTiles / kGroup; ++g) {
          Lane<kGroup> result;
#pragma unroll
          for (int j = 0; j < kGroup; ++j) {
            const float2 v = strip.pair(r, g * kGroup + j, high);
            result.pair[j] = T::pack(v.x, v.y);
          }
          store_global(reinterpret_cast<typename Lane<kGroup>::Vector*>(p.features +
                                                                        element(y, x, channel(g))),
                       result.vector());
        }
      }
    }
  }
};

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksPerSm) head_kernel(const HeadArguments p) {
  const uint32_t image = shared_memory();
  const HeadWork<S> work(p, blockIdx.x, threadIdx.x);
  work.load_image(image, threadIdx.x);
  synchronize();
  work.convolve(image);
}

}  // namespace espan::cuda
