// Converts the last convolution's values to image values: range, clamping, rounding, pixel shuffle.
// Included after vec.h, once per instruction set.

typedef uint8_t VecB __attribute__((vector_size(ESPAN_LANES)));

// clamp(v, 0, 1) * 255, rounded to nearest even.  NaN becomes 0; the range reports it.  The clamp
// comes between the product and the sum, which prevents contraction to an FMA, so the product is
// rounded as in PyTorch.
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

// Copies pieces of kCount elements, one per pixel, to contiguous memory.
template <int kCount, class T>
inline void copy_pieces(const T* from, int64_t step, T* to, int64_t pixels) {
  for (int64_t x = 0; x < pixels; ++x)
    __builtin_memcpy(to + x * kCount, from + x * step, kCount * sizeof(T));
}

// Copies each pixel's kScale values of every colour to contiguous memory, one plane per colour.
// With kScale a constant the compiler moves them as vectors; with `scale` a run-time value the last
// layer took four times as long.
template <int kScale, class T>
inline void copy_planes(const T* from, int64_t step, T* to, int64_t channel, int64_t pixels) {
  for (int64_t x = 0; x < pixels; ++x)
    for (int c = 0; c < 3; ++c) {
      T piece[kScale];
#pragma GCC unroll 4
      for (int dx = 0; dx < kScale; ++dx) piece[dx] = from[x * step + 3 * dx + c];
      __builtin_memcpy(to + c * channel + x * kScale, piece, sizeof piece);
    }
}

// Writes one row of low-resolution pixels, [pixel][(dy, dx, colour)], to `scale` rows of the image.
template <class T>
inline void shuffle(const T* from, int64_t step, int64_t pixels, int64_t scale, const Pixels& image,
                    T* to) {
  const bool dense = image.channel == 1 && image.column == 3, planes = image.column == 1;
  for (int64_t dy = 0; dy < scale; ++dy, from += 3 * scale, to += image.row) {
    if (dense && scale == 4) {
      copy_pieces<12>(from, step, to, pixels);
    } else if (dense && scale == 3) {
      copy_pieces<9>(from, step, to, pixels);
    } else if (dense && scale == 2) {
      copy_pieces<6>(from, step, to, pixels);
    } else if (planes && scale == 4) {
      copy_planes<4>(from, step, to, image.channel, pixels);
    } else if (planes && scale == 3) {
      copy_planes<3>(from, step, to, image.channel, pixels);
    } else if (planes && scale == 2) {
      copy_planes<2>(from, step, to, image.channel, pixels);
    } else {
      for (int64_t c = 0; c < 3; ++c)
        for (int64_t x = 0; x < pixels; ++x)
          for (int64_t dx = 0; dx < scale; ++dx)
            to[c * image.channel + (x * scale + dx) * image.column] = from[x * step + 3 * dx + c];
    }
  }
}
