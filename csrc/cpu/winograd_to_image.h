// The last convolution, by Winograd, written to the image.  Included after winograd.h and
// to_image.h.

// Writes `pixels` results of one row, [group][pixel][lane], to `scale` rows of the image.
template <class T>
inline void store_image_row(const Pixels& image, int64_t scale, int64_t vecs, const float* results,
                            int64_t plane, int64_t pixels, T* scratch, T* to, Range& all) {
  const int64_t step = vecs * kLanes;
  VecRange range = start_range(all);
  for (int64_t x = 0; x < pixels; ++x)
    for (int64_t g = 0; g < vecs; ++g) {
      const VecF v = load(results + g * plane + x * kLanes);
      widen(range, v);
      store(scratch + x * step + g * kLanes, v);
    }
  end_range(range, all);
  shuffle(scratch, step, pixels, scale, image, to);
}

template <class T>
inline void upsample_tiles(const UpsampleRow& u) {
  ConvRow c = u.conv;
  const int64_t vecs = groups(c.outputs);
  c.out_plane = 4 * kBlock * kLanes;
  float* results = c.scratch + products_size(c.inputs, c.outputs);
  for (int i = 0; i < 4; ++i) c.out[i] = results + i * vecs * c.out_plane;
  T* shuffled = reinterpret_cast<T*>(results + 4 * vecs * c.out_plane);
  int64_t first = 0;
  while (first < c.tiles) {
    const int64_t n = block_size(c.tiles - first);
    conv_block(c, first, n, 0);
    const int64_t end = 4 * (first + n) < u.columns ? 4 * (first + n) : u.columns;
    T* to = static_cast<T*>(u.image.data) + 4 * first * u.scale * u.image.column;
    for (int64_t i = 0; i < u.rows; ++i, to += u.scale * u.image.row)
      store_image_row(u.image, u.scale, vecs, c.out[i], c.out_plane, end - 4 * first, shuffled, to,
                      *u.range);
    first += n;
  }
}

inline void upsample_row(const UpsampleRow& u) {
  if (u.image.type == Element::uint8)
    upsample_tiles<uint8_t>(u);
  else
    upsample_tiles<float>(u);
}
