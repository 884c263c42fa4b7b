// Writes four pixels of a x4 network's last convolution to float planes, with vector shuffles only:
// going through memory takes four times as long.  Included after to_image.h.

// Permutation indices that gather one colour from three vectors of interleaved RGB, 16 pixels:
// first from vectors 0 and 1 (indices from 16 refer to the second operand), then from that result
// and vector 2.
struct Planes {
  alignas(64) uint32_t lanes[3][2][16];
  constexpr Planes() : lanes() {
    for (int c = 0; c < 3; ++c)
      for (int i = 0; i < 16; ++i) {
        const int at = 3 * i + c;
        lanes[c][0][i] = static_cast<uint32_t>(at < 32 ? at : 0);
        lanes[c][1][i] = static_cast<uint32_t>(at < 32 ? i : at - 16);
      }
  }
};
constexpr Planes kPlanes;

inline __m512 of_colour(const __m512* v, int colour) {
  const auto& lanes = kPlanes.lanes[colour];
  const __m512 two = _mm512_permutex2var_ps(v[0], _mm512_load_si512(lanes[0]), v[1]);
  return _mm512_permutex2var_ps(two, _mm512_load_si512(lanes[1]), v[2]);
}

// Writes four of the part's pixels, starting at i.  A pixel's 48 values are ordered (dy, dx,
// colour); `to` points to the first.
inline void store_planes(const Part& part, int64_t i, const Pixels& image, VecRange& range,
                         float* to) {
  __m512 v[4][3];
  for (int64_t pixel = 0; pixel < 4; ++pixel)
    for (int64_t group = 0; group < 3; ++group) {
      const VecF values = load(part.at(group, i + pixel));
      widen(range, values);
      v[pixel][group] = (__m512)values;
    }
  for (int c = 0; c < 3; ++c) {
    // A quarter of a vector is one output row; the shuffles join the rows of four pixels.
    const __m512 p0 = of_colour(v[0], c), p1 = of_colour(v[1], c);
    const __m512 p2 = of_colour(v[2], c), p3 = of_colour(v[3], c);
    const __m512 top01 = _mm512_shuffle_f32x4(p0, p1, 0x44);
    const __m512 top23 = _mm512_shuffle_f32x4(p2, p3, 0x44);
    const __m512 bottom01 = _mm512_shuffle_f32x4(p0, p1, 0xee);
    const __m512 bottom23 = _mm512_shuffle_f32x4(p2, p3, 0xee);
    float* row = to + c * image.channel;
    _mm512_storeu_ps(row, _mm512_shuffle_f32x4(top01, top23, 0x88));
    _mm512_storeu_ps(row + image.row, _mm512_shuffle_f32x4(top01, top23, 0xdd));
    _mm512_storeu_ps(row + 2 * image.row, _mm512_shuffle_f32x4(bottom01, bottom23, 0x88));
    _mm512_storeu_ps(row + 3 * image.row, _mm512_shuffle_f32x4(bottom01, bottom23, 0xdd));
  }
}
