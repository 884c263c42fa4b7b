// Four pixels of the last convolution for four times the size, into planes of floats: by vectors
// alone, which over memory takes four times as long.  Included after to_image.h.

// Of three vectors with 16 red, green and blue values in turn, those of one colour: lanes of the
// first two (from 16 on, of the second), then of that and of the third.
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

// The part's pixels from i on.  A pixel's 48 values are (dy, dx, colour); `to` is its first.
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
    // Quarters are rows; of four pixels they come to follow each other.
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
