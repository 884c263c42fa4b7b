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
//
// With a pixel unshuffle of 2 or 4, a second kernel copies the unshuffled image to shared memory as
// a feature map of 16 or 48 channels (the 12 of a factor of 2 are padded) and computes an ordinary
// 3x3 convolution.
#pragma once

#include <cstring>

#include "map_tile.cuh"
#include "point.cuh"

namespace espan::cuda {

struct HeadArguments {
  const void* image;
  int64_t stride[4];  // of N, C, H, W, in elements
  Image type;
  int unshuffle, image_height, image_width;
  Activation activation;
  const float* mean;  // or null
  uint16_t* features;
  const uint4* weights;
  const float* bias;
  int kernel, height, width, tiles_x, tiles_y;
  int rows, items, blocks;  // for head_hopper.cuh: rows per segment, segments, blocks <= segments
};

// Calls f with a value of the image's element type, and what converts one to float.
template <class F>
__device__ __forceinline__ void with_type(Image type, F f) {
  switch (type) {
    case Image::uint8:
      return f(uint8_t{}, [](uint32_t v) { return static_cast<float>(v) * (1 / 255.0f); });
    case Image::float16:
      return f(uint16_t{}, [](uint32_t v) { return Float16::unpack(v).x; });
    case Image::bfloat16:
      return f(uint16_t{}, [](uint32_t v) { return BFloat16::unpack(v).x; });
    case Image::float32:
      return f(uint32_t{}, [](uint32_t v) {
        float wide;
        std::memcpy(&wide, &v, 4);
        return wide;
      });
  }
}

// An image is extended by reflection.  Returns the index of what is at i in the extended image; -1
// outside it, where the padding is zero.
__device__ __forceinline__ int reflected(int i, int size, int extended) {
  if (static_cast<unsigned>(i) >= static_cast<unsigned>(extended)) return -1;
  return i < size ? i : 2 * size - 2 - i;
}

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
  // For the unshuffled image.
  static constexpr int kRowsOfPixels = kHeight + 2, kColumnsOfPixels = kWidth + 2;
  static constexpr int pixel_bytes(int unshuffle) { return unshuffle == 2 ? 32 : 96; }
  static constexpr int shared_bytes(int unshuffle) {
    return kRowsOfPixels * kColumnsOfPixels * pixel_bytes(unshuffle);
  }
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

  // The first element of the image.
  template <class V>
  __device__ __forceinline__ const V* first_element() const {
    const int64_t n = this->image / (static_cast<int64_t>(p.height) * p.width);
    return static_cast<const V*>(p.image) + n * p.stride[0];
  }
  __device__ __forceinline__ void load_mean(float (&mean)[3]) const {
#pragma unroll
    for (int c = 0; c < 3; ++c) mean[c] = p.mean != nullptr ? load_global(p.mean + c) : 0;
  }

  // Loads the image tile and its halo, as 16-bit values in two copies.  `widen` converts an element
  // to float.
  template <class V, class Widen>
  __device__ __forceinline__ void load_image(uint32_t to, int thread, Widen widen) const {
    const int radius = p.kernel / 2, rows = S::kHeight + 3 * groups - 1;
    const V* image = first_element<V>();
    float mean[3];
    load_mean(mean);
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

  // Loads the unshuffled image tile and its halo.  A pixel has the values (dy, dx, rgb), so
  // neighbours of an image row stay neighbours.
  template <class V, class Widen>
  __device__ __forceinline__ void load_pixels(uint32_t to, int thread, Widen widen) const {
    const MapTile<S::kColumnsOfPixels> tile{p.unshuffle == 2 ? 16 : 48};
    const V* image = first_element<V>();
    float mean[3];
    load_mean(mean);
    const int u = p.unshuffle, shift = u / 2;  // log2
    for (int line = thread / 32; line < u * S::kRowsOfPixels; line += S::kThreads / 32) {
      const int row = line >> shift, dy = line & (u - 1);
      const int y = reflected(u * (top - 1) + line, p.image_height, u * p.height);
      const uint32_t from = to + row * tile.row_bytes();
      for (int first = 0; first < 3 * u * S::kColumnsOfPixels; first += 32) {
        const int i = first + at.lane, column = i / 3, c = i - 3 * column;
        const int x = reflected(u * (left - 1) + column, p.image_width, u * p.width);
        float v = 0;
        if (y >= 0 && x >= 0)
          v = widen(load_global(image + c * p.stride[1] + y * p.stride[2] + x * p.stride[3])) -
              (c == 0   ? mean[0]
               : c == 1 ? mean[1]
                        : mean[2]);
        const int pixel = column >> shift;
        const int of_pixel = i + 3 * u * (dy - pixel);
        store_shared(from + tile.offset(pixel, of_pixel / 8) + of_pixel % 8 * 2,
                     static_cast<uint16_t>(T::pack(v, 0)), i < 3 * u * S::kColumnsOfPixels);
      }
      if (u == 2 && dy == 0)
        for (int first = 0; first < S::kColumnsOfPixels; first += 32)  // the padding
          store_shared(from + tile.offset(first + at.lane, 1) + 8, make_uint2(0, 0),
                       first + at.lane < S::kColumnsOfPixels);
    }
  }

  __device__ __forceinline__ void convolve(uint32_t image) const {
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
    store(strip);
  }

  __device__ __forceinline__ void convolve_pixels(uint32_t image) const {
    const MapTile<S::kColumnsOfPixels> tile{p.unshuffle == 2 ? 16 : 48};
    Strip<S::kRows, S::kTiles> strip;
    strip.fill(p.bias + first_pair() * 16, at);
    tile.template convolve<T>(strip, image + row_warp * S::kRows * tile.row_bytes(),
                              column_warp * 16, p.weights + first_pair() * 32, S::kPairs, at);
    store(strip);
  }

  __device__ __forceinline__ void store(const Strip<S::kRows, S::kTiles>& strip) const {
    switch (p.activation) {
      case Activation::silu:
        return store<Activation::silu>(strip);
      case Activation::relu:
        return store<Activation::relu>(strip);
      default:
        return store<Activation::none>(strip);
    }
  }

  template <Activation A>
  __device__ __forceinline__ void store(const Strip<S::kRows, S::kTiles>& strip) const {
    constexpr int kGroup = Group<S::P>::kTiles;
    const int tile_top = recompute(top), tile_left = recompute(left);
#pragma unroll
    for (int r = 0; r < S::kRows; ++r) {
      const int y = tile_top + row_warp * S::kRows + r;
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int x = tile_left + column_warp * 16 + at.pixel + 8 * high;
        if (y >= p.height || x >= p.width) continue;
#pragma unroll
        for (int g = 0; g < S::kTiles / kGroup; ++g) {
          Lane<kGroup> result;
#pragma unroll
          for (int j = 0; j < kGroup; ++j)
            result.pair[j] = activated<T, A>(strip.pair(r, g * kGroup + j, high));
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
  with_type(p.type, [&](auto v, auto widen) {
    work.template load_image<decltype(v)>(image, threadIdx.x, widen);
  });
  synchronize();
  work.convolve(image);
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksPerSm)
    head_pixels_kernel(const HeadArguments p) {
  const uint32_t image = shared_memory();
  const HeadWork<S> work(p, blockIdx.x, threadIdx.x);
  with_type(p.type, [&](auto v, auto widen) {
    work.template load_pixels<decltype(v)>(image, threadIdx.x, widen);
  });
  synchronize();
  work.convolve_pixels(image);
}

}  // namespace espan::cuda
