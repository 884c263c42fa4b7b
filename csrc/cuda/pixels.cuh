// The end of the streamed tail: stores a lane's values of the upsampling convolution as pixels.
// Addresses are computed once and then advanced by a row, where tail.cuh computes each one.  The
// latter took more instructions than the products, and the streamed tail has registers to spare.
#pragma once

#include "conv.cuh"

namespace espan::cuda {

// UpTiles is 2 for s = 1, 2 and 6 for s = 3, 4.  Of the s x s output pixels of a feature pixel, a
// lane has one row if s > 2, otherwise the quad-th pixel.  Its values are interleaved r, g, b.
template <int UpTiles>
struct PixelWriter {
  static constexpr bool kRow = UpTiles == 6;
  void* image;  // uint8: (N, s H, s W, 3); others: (N, 3, s H, s W)
  Image type;
  int scale, quad;
  int64_t width, plane, before;  // the output's width; pixels of a plane; values of earlier images
  int64_t row_step;              // from a lane's first value to that in the next row of features

  // `first` is the first feature pixel of the image in the batch.
  template <class Arguments>
  __device__ __forceinline__ PixelWriter(const Arguments& p, int64_t first, int quad)
      : image(p.image), type(p.type), scale(p.scale), quad(quad) {
    width = static_cast<int64_t>(p.width) * scale;
    plane = width * p.height * scale;
    before = first * scale * scale * 3;
    row_step = width * scale * (type == Image::uint8 ? 3 : 1);
  }

  // The index of the lane's first value.
  __device__ __forceinline__ int64_t place(int y, int x) const {
    const int64_t out_y = static_cast<int64_t>(y) * scale + (kRow ? quad : quad / scale);
    const int64_t out_x = static_cast<int64_t>(x) * scale + (kRow ? 0 : quad % scale);
    const int64_t at = out_y * width + out_x;
    return before + (type == Image::uint8 ? 3 * at : at);
  }

  // Stores the lane's values.  Returns whether one is outside [-1, 2] or not finite.
  __device__ __forceinline__ bool store(int64_t place, const float (&values)[2 * UpTiles]) const {
    if constexpr (kRow) {
      if (scale == 4) return store_pixels<4>(place, values);
      return quad < 3 && store_pixels<3>(place, values);
    } else {
      return quad < scale * scale && store_pixels<1>(place, values);
    }
  }

  template <int kPixels>
  __device__ __forceinline__ bool store_pixels(int64_t place,
                                               const float (&values)[2 * UpTiles]) const {
    switch (type) {
      case Image::uint8:
        store_levels<kPixels>(static_cast<uint8_t*>(image) + place, values);
        break;
      case Image::float32:
        store_colours<kPixels>(static_cast<float*>(image) + place, values,
                               [](float v) { return v; });
        break;
      case Image::float16:
        store_colours<kPixels>(static_cast<uint16_t*>(image) + place, values,
                               [](float v) { return static_cast<uint16_t>(Float16::pack(v, 0)); });
        break;
      case Image::bfloat16:
        store_colours<kPixels>(static_cast<uint16_t*>(image) + place, values,
                               [](float v) { return static_cast<uint16_t>(BFloat16::pack(v, 0)); });
        break;
    }
    bool out_of_range = false;
#pragma unroll
    for (int i = 0; i < 3 * kPixels; ++i) out_of_range |= !(fabsf(values[i] - 0.5f) <= 1.5f);
    return out_of_range;
  }

  template <int kPixels>
  __device__ __forceinline__ static void store_levels(uint8_t* to,
                                                      const float (&values)[2 * UpTiles]) {
    uint32_t levels[3 * kPixels];
#pragma unroll
    for (int i = 0; i < 3 * kPixels; ++i)
      levels[i] = round_to_int(fminf(fmaxf(values[i], 0), 1) * 255);
#pragma unroll
    for (int i = 0; i < 3 * kPixels; ++i) {
      if constexpr (kPixels == 4) {
        if (i % 4 == 0)
          store_global(reinterpret_cast<uint32_t*>(to + i),
                       levels[i] | levels[i + 1] << 8 | levels[i + 2] << 16 | levels[i + 3] << 24);
      } else {
        store_global(to + i, static_cast<uint8_t>(levels[i]));
      }
    }
  }

  // Each colour is a separate plane; 4 neighbours are stored at once.
  template <int kPixels, class V, class Convert>
  __device__ __forceinline__ void store_colours(V* to, const float (&values)[2 * UpTiles],
                                                Convert convert) const {
    struct alignas(4 * sizeof(V)) Four {
      V v[4];
    };
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      V* colour = to + c * plane;
      if constexpr (kPixels == 4) {
        store_global(reinterpret_cast<Four*>(colour),
                     Four{{convert(values[c]), convert(values[c + 3]), convert(values[c + 6]),
                           convert(values[c + 9])}});
      } else {
#pragma unroll
        for (int i = 0; i < kPixels; ++i) store_global(colour + i, convert(values[c + 3 * i]));
      }
    }
  }
};

}  // namespace espan::cuda
