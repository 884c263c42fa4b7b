// Rows of an image as the first convolution reads them: fp32, interleaved, with the mean subtracted
// and padded with zeros.
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

template <class T, class Convert>
void read_row(const T* row, const Pixels& s, const Convert& convert, int64_t begin, int64_t end,
              float* out) {
  for (int64_t x = begin; x < end; ++x, out += 3)
    for (int c = 0; c < 3; ++c) out[c] = convert(row[x * s.column + c * s.channel], c);
}

template <class T, class Convert>
void read_rows(const Pixels& image, const Convert& convert, int64_t height, int64_t width,
               int64_t first, int64_t count, int64_t left, int64_t pixels, float* out) {
  const int64_t begin = std::max<int64_t>(left, 0), end = std::min(left + pixels, width);
  for (int64_t y = first; y < first + count; ++y, out += 3 * pixels) {
    const bool inside = y >= 0 && y < height;
    std::fill(out, out + (inside ? 3 * (begin - left) : 3 * pixels), 0.0f);
    if (!inside) continue;
    read_row(static_cast<const T*>(image.at(y, 0)), image, convert, begin, end,
             out + 3 * (begin - left));
    std::fill(out + 3 * (end - left), out + 3 * pixels, 0.0f);
  }
}

// Reads `count` rows of `pixels` pixels starting at (first, left), which may be outside the image.
inline void read_image_rows(const Pixels& image, const float* mean, int64_t height, int64_t width,
                            int64_t first, int64_t count, int64_t left, int64_t pixels,
                            float* out) {
  const auto read = [&](auto zero, const auto& convert) {
    read_rows<decltype(zero)>(image, convert, height, width, first, count, left, pixels, out);
  };
  if (image.type == Element::uint8)
    read(uint8_t{}, FromBytes(mean));
  else
    read(float{}, FromFloats(mean));
}

}  // namespace espan::cpu
