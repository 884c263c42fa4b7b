// From the last convolution to the image: range, clamp, rounding, pixel shuffle.  Included after
// winograd.h, as that file is.

typedef uint8_t VecB __attribute__((vector_size(ESPAN_LANES)));

// clamp(v, 0, 1) * 255, rounded to even; NaN becomes 0, as the range tells.  The clamp stands
// between product and sum, so that they are not contracted and the product is rounded as PyTorch
// rounds it.
inline void store(uint8_t* p, VecF v) {
  v = minimum(maximum(v * 255.0f, VecF{}), broadcast(255.0f));
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const VecB bytes = __builtin_convertvector(bits(v + 12582912.0f) & 255u, VecB);
  __builtin_memcpy(p, &bytes, sizeof bytes);
}

struct VecRange {
  VecF low, high, finite;
};

inline VecRange start_range(const Range& r) {
  return {broadcast(r.low), broadcast(r.high), broadcast(r.finite)};
}

inline void widen(VecRange& r, VecF v) {
  r.low = minimum(v, r.low);
  r.high = maximum(v, r.high);
  r.finite += v * 0.0f;
}

inline void end_range(const VecRange& v, Range& r) {
  for (int i = 0; i < kLanes; ++i) {
    r.low = v.low[i] < r.low ? v.low[i] : r.low;
    r.high = v.high[i] > r.high ? v.high[i] : r.high;
    r.finite += v.finite[i];
  }
}

// Pieces of kCount elements, one per pixel, to where they follow each other.
template <int kCount, class T>
inline void copy_pieces(const T* from, int64_t step, T* to, int64_t pixels) {
  for (int64_t x = 0; x < pixels; ++x)
    __builtin_memcpy(to + x * kCount, from + x * step, kCount * sizeof(T));
}

// One row of low-resolution pixels, [pixel][(dy, dx, colour)], to `scale` rows of the image.
template <class T>
inline void shuffle(const T* from, int64_t step, int64_t pixels, int64_t scale, const Pixels& image,
                    T* to) {
  const bool dense = image.channel == 1 && image.column == 3;
  for (int64_t dy = 0; dy < scale; ++dy, from += 3 * scale, to += image.row) {
    if (dense && scale == 4) {
      copy_pieces<12>(from, step, to, pixels);
    } else if (dense && scale == 3) {
      copy_pieces<9>(from, step, to, pixels);
    } else if (dense && scale == 2) {
      copy_pieces<6>(from, step, to, pixels);
    } else {
      for (int64_t c = 0; c < 3; ++c)
        for (int64_t x = 0; x < pixels; ++x)
          for (int64_t dx = 0; dx < scale; ++dx)
            to[c * image.channel + (x * scale + dx) * image.column] = from[x * step + 3 * dx + c];
    }
  }
}

// `pixels` results of one row, [group][pixel][lane], to `scale` rows of the image.
template <class T>
inline void store_image_row(const UpsampleRow& u, const float* results, int64_t plane,
                            int64_t pixels, T* scratch, T* to) {
  const int64_t vecs = groups(u.conv.outputs), step = vecs * kLanes;
  VecRange range = start_range(*u.range);
  for (int64_t x = 0; x < pixels; ++x)
    for (int64_t g = 0; g < vecs; ++g) {
      const VecF v = load(results + g * plane + x * kLanes);
      widen(range, v);
      store(scratch + x * step + g * kLanes, v);
    }
  end_range(range, *u.range);
  shuffle(scratch, step, pixels, u.scale, u.image, to);
}

template <class T>
inline void upsample_tiles(const UpsampleRow& u) {
  ConvRow c = u.conv;
  const int64_t vecs = groups(c.outputs);
  c.out_plane = 4 * kBlock * kLanes;
  float* results = c.scratch + kPositions * (products_in(c.inputs) + products_out(c.outputs));
  for (int i = 0; i < 4; ++i) c.out[i] = results + i * vecs * c.out_plane;
  T* shuffled = reinterpret_cast<T*>(results + 4 * vecs * c.out_plane);
  int64_t first = 0;
  while (first < c.tiles) {
    const int64_t n = block_size(c.tiles - first);
    conv_block(c, first, n, 0);
    const int64_t end = 4 * (first + n) < u.columns ? 4 * (first + n) : u.columns;
    T* to = static_cast<T*>(u.image.data) + 4 * first * u.scale * u.image.column;
    for (int64_t i = 0; i < u.rows; ++i, to += u.scale * u.image.row)
      store_image_row(u, c.out[i], c.out_plane, end - 4 * first, shuffled, to);
    first += n;
  }
}

inline void upsample_row(const UpsampleRow& u) {
  switch (u.image.type) {
    case Element::uint8:
      return upsample_tiles<uint8_t>(u);
    case Element::float16:
      return upsample_tiles<Half>(u);
    case Element::bfloat16:
      return upsample_tiles<BFloat16>(u);
    case Element::float32:
      return upsample_tiles<float>(u);
  }
}
