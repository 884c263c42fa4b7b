// Rows of an image as the layers read them: fp32, interleaved, with the mean subtracted and padded
// with zeros.
#pragma once

#include <algorithm>

#include "network_tasks.h"

namespace espan::cpu {

// Image values minus the mean, with the rounding of PyTorch's x / 255 - mean.
struct FromBytes {
  float table[3][256];
  explicit FromBytes(const float* mean) {
    for (int c = 0; c < 3; ++c)
      for (int v = 0; v < 256; ++v) table[c][v] = static_cast<float>(v) / 255.0f - mean[c];
  }
  float operator()(uint8_t v, int c) const { return table[c][v]; }
};

struct FromFloats {
  float mean[3];
  explicit FromFloats(const float* m) : mean{m[0], m[1], m[2]} {}
  float operator()(float v, int c) const { return v - mean[c]; }
};

// Values of one pixel of the network's layers: those of u x u pixels of the image.
inline int64_t values_of_pixel(const Images& images) {
  return 3 * images.unshuffle * images.unshuffle;
}

inline int64_t unshuffled(int64_t size, int64_t u) { return (size + u - 1) / u; }

// The image continues beyond its last row or column by reflection.
inline int64_t reflected(int64_t i, int64_t size) { return i < size ? i : 2 * (size - 1) - i; }

template <class T, class Convert>
void read_row(const Images& images, const Convert& convert, int64_t y, int64_t begin, int64_t end,
              float* out) {
  const Pixels& s = images.input;
  const int64_t u = images.unshuffle, values = values_of_pixel(images);
  for (int64_t dy = 0; dy < u; ++dy, out += 3 * u) {
    const T* row = static_cast<const T*>(s.at(reflected(u * y + dy, images.height), 0));
    float* to = out;
    for (int64_t x = begin; x < end; ++x, to += values)
      for (int64_t dx = 0; dx < u; ++dx) {
        const T* pixel = row + reflected(u * x + dx, images.width) * s.column;
        for (int c = 0; c < 3; ++c) to[3 * dx + c] = convert(pixel[c * s.channel], c);
      }
  }
}

template <class T, class Convert>
void read_rows(const Images& images, const Convert& convert, int64_t first, int64_t count,
               int64_t left, int64_t pixels, float* out) {
  const int64_t values = values_of_pixel(images);
  const int64_t height = unshuffled(images.height, images.unshuffle);
  const int64_t width = unshuffled(images.width, images.unshuffle);
  const int64_t begin = std::max<int64_t>(left, 0), end = std::min(left + pixels, width);
  for (int64_t y = first; y < first + count; ++y, out += values * pixels) {
    const bool inside = y >= 0 && y < height;
    std::fill(out, out + (inside ? values * (begin - left) : values * pixels), 0.0f);
    if (!inside) continue;
    read_row<T>(images, convert, y, begin, end, out + values * (begin - left));
    std::fill(out + values * (end - left), out + values * pixels, 0.0f);
  }
}

// Reads `count` rows of `pixels` pixels of the layers, starting at (first, left), which may be
// outside the image.  The values of a pixel are ordered (dy, dx, colour).
inline void read_image_rows(const Images& images, int64_t first, int64_t count, int64_t left,
                            int64_t pixels, float* out) {
  const auto read = [&](auto zero, const auto& convert) {
    read_rows<decltype(zero)>(images, convert, first, count, left, pixels, out);
  };
  if (images.input.type == Element::uint8)
    read(uint8_t{}, FromBytes(images.mean));
  else
    read(float{}, FromFloats(images.mean));
}

}  // namespace espan::cpu
