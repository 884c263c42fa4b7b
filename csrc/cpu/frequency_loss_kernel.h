// The frequency-aware loss of one tile.  Compiled once per instruction set by for_each_isa.h.
//
// A tile is a rectangle of whole DCT blocks.  Its difference image is read with a halo of 4 pixels,
// reflected at the borders; everything after that stays in one thread's scratch memory.

// The lanes of v in the order 0 ^ m, 1 ^ m, 2 ^ m, ...; both compilers need the indices spelt out.
#if ESPAN_LANES == 4
#define ESPAN_ORDER(m) 0 ^ m, 1 ^ m, 2 ^ m, 3 ^ m
#elif ESPAN_LANES == 8
#define ESPAN_ORDER(m) 0 ^ m, 1 ^ m, 2 ^ m, 3 ^ m, 4 ^ m, 5 ^ m, 6 ^ m, 7 ^ m
#else
#define ESPAN_ORDER(m)                                                                          \
  0 ^ m, 1 ^ m, 2 ^ m, 3 ^ m, 4 ^ m, 5 ^ m, 6 ^ m, 7 ^ m, 8 ^ m, 9 ^ m, 10 ^ m, 11 ^ m, 12 ^ m, \
      13 ^ m, 14 ^ m, 15 ^ m
#endif
#if defined(__clang__)
#define ESPAN_EXCHANGE(v, m) __builtin_shufflevector(v, v, ESPAN_ORDER(m))
#else
#define ESPAN_EXCHANGE(v, m) __builtin_shuffle(v, VecU{ESPAN_ORDER(m)})
#endif

// 1, -1, 0 or NaN for v > 0, v < 0, v = 0 or a NaN.
inline VecF sign(VecF v) { return v > 0.0f ? broadcast(1.0f) : v < 0.0f ? broadcast(-1.0f) : v; }

inline VecF magnitude(VecF v) { return from_bits(bits(v) & 0x7fffffffu); }

// v in the lanes where `column` is in [0, width), 0 elsewhere.
inline VecF inside(VecF v, VecU column, int width) {
  return from_bits(bits(v) & (VecU)(column < static_cast<uint32_t>(width)));
}

inline VecF blurred(VecF far, VecF near, VecF v) {
  return v + kBlur1 * (near - 2.0f * v) + kBlur2 * (far - 2.0f * v);
}

// Blurs along a row; `p` points to the first pixel.
inline VecF blurred_row(const float* p) {
  return blurred(load(p - 2) + load(p + 2), load(p - 1) + load(p + 1), load(p));
}

// Blurs along the columns; `p` points into the middle of five rows.
inline VecF blurred_column(const float* p) {
  constexpr int64_t k = LossScratch::kPitch;
  return blurred(load(p - 2 * k) + load(p + 2 * k), load(p - k) + load(p + k), load(p));
}

// The DCT of 8 vectors, lane by lane, and its transpose, which is also its inverse.
inline void dct(VecF* v) {
  VecF a[4], b[4];
  for (int i = 0; i < 4; ++i) {
    a[i] = v[i] + v[7 - i];
    b[i] = v[i] - v[7 - i];
  }
  const VecF outer = a[0] + a[3], inner = a[1] + a[2], c = a[0] - a[3], d = a[1] - a[2];
  v[0] = kCos4 * (outer + inner);
  v[4] = kCos4 * (outer - inner);
  v[2] = kCos2 * c + kCos6 * d;
  v[6] = kCos6 * c - kCos2 * d;
  v[1] = kCos1 * b[0] + kCos3 * b[1] + kCos5 * b[2] + kCos7 * b[3];
  v[3] = kCos3 * b[0] - kCos7 * b[1] - kCos1 * b[2] - kCos5 * b[3];
  v[5] = kCos5 * b[0] - kCos1 * b[1] + kCos7 * b[2] + kCos3 * b[3];
  v[7] = kCos7 * b[0] - kCos5 * b[1] + kCos3 * b[2] - kCos1 * b[3];
}

inline void dct_transposed(VecF* v) {
  const VecF p = kCos4 * (v[0] + v[4]), q = kCos4 * (v[0] - v[4]);
  const VecF c = kCos2 * v[2] + kCos6 * v[6], d = kCos6 * v[2] - kCos2 * v[6];
  const VecF a[4] = {p + c, q + d, q - d, p - c};
  const VecF b[4] = {kCos1 * v[1] + kCos3 * v[3] + kCos5 * v[5] + kCos7 * v[7],
                     kCos3 * v[1] - kCos7 * v[3] - kCos1 * v[5] - kCos5 * v[7],
                     kCos5 * v[1] - kCos1 * v[3] + kCos7 * v[5] + kCos3 * v[7],
                     kCos7 * v[1] - kCos5 * v[3] + kCos3 * v[5] - kCos1 * v[7]};
  for (int i = 0; i < 4; ++i) {
    v[i] = a[i] + b[i];
    v[7 - i] = a[i] - b[i];
  }
}

// 8 pixels of a row fill two vectors of 4 lanes or one of 8; a vector of 16 lanes holds 16 pixels.
constexpr int kVectors = kLanes < 8 ? 8 / kLanes : 1;
constexpr int kColumns = kVectors * kLanes;

// Along a row: sums of mirrored pixels in the first four lanes of each 8, differences in the
// others.  It is its own transpose; applied twice, it is twice the identity.
inline void mirror_sums(VecF* v) {
#if ESPAN_LANES == 4
  const VecF low = v[0] + ESPAN_EXCHANGE(v[1], 3);
  v[1] = ESPAN_EXCHANGE(v[0], 3) - v[1];
  v[0] = low;
#else
  constexpr uint32_t m = 0x80000000u;
#if ESPAN_LANES == 8
  const VecU flip = {0, 0, 0, 0, m, m, m, m};
#else
  const VecU flip = {0, 0, 0, 0, m, m, m, m, 0, 0, 0, 0, m, m, m, m};
#endif
  v[0] = ESPAN_EXCHANGE(v[0], 7) + from_bits(bits(v[0]) ^ flip);
#endif
}

// Within each group of four lanes, lane l becomes the sum over m of lane l ^ m times table[m][l].
inline void four_by_four(const float (*table)[16], VecF* v) {
  for (int i = 0; i < kVectors; ++i) {
    const int l = i * kLanes;
    v[i] = load(table[0] + l) * v[i] + load(table[1] + l) * ESPAN_EXCHANGE(v[i], 1) +
           load(table[2] + l) * ESPAN_EXCHANGE(v[i], 2) +
           load(table[3] + l) * ESPAN_EXCHANGE(v[i], 3);
  }
}

// The DCT along the row.  Its coefficients are in the order 0 2 4 6 7 5 3 1; no caller depends on
// the order.
inline void dct_row(VecF* v) {
  mirror_sums(v);
  four_by_four(LossTables::get().forward, v);
}

inline void dct_row_transposed(VecF* v) {
  four_by_four(LossTables::get().transposed, v);
  mirror_sums(v);
}

// Returns the sum of |coefficient| over the tile and, if `gradient`, stores its gradient in s.dct.
inline VecF dct_blocks(const LossTile& t, bool gradient, VecU lane, LossScratch& s) {
  VecF sum = {};
  for (int row = 0; row < t.rows; row += 8)
    for (int column = 0; column < t.columns; column += kColumns) {
      VecF v[8][kVectors];
      for (int i = 0; i < kVectors; ++i) {
        const int first = column + i * kLanes;
        VecF down[8];
        for (int r = 0; r < 8; ++r) down[r] = load(s.d(row + r) + first);
        dct(down);
        for (int r = 0; r < 8; ++r) v[r][i] = down[r];
      }
      for (int r = 0; r < 8; ++r) {
        dct_row(v[r]);
        for (int i = 0; i < kVectors; ++i) {
          const VecU at = lane + static_cast<uint32_t>(column + i * kLanes);
          sum += inside(magnitude(v[r][i]), at, t.columns);
          v[r][i] = sign(v[r][i]);
        }
        if (gradient) dct_row_transposed(v[r]);
      }
      if (!gradient) continue;
      for (int i = 0; i < kVectors; ++i) {
        VecF down[8];
        for (int r = 0; r < 8; ++r) down[r] = v[r][i];
        dct_transposed(down);
        for (int r = 0; r < 8; ++r) store(s.dct(row + r) + column + i * kLanes, down[r]);
      }
    }
  return sum;
}

// Loads d = HR - SR for the tile and its halo.
template <class T>
void load_difference(const T* sr, const T* hr, const LossTile& t, LossScratch& s) {
  const int begin = -kHalo, end = t.columns + kHalo;
  const int first = t.x > kHalo ? begin : -t.x;
  const int last = t.width - t.x < end ? t.width - t.x : end;
  for (int row = -kHalo; row < t.rows + kHalo; ++row) {
    const int64_t start = static_cast<int64_t>(reflected(t.y + row, t.height)) * t.width;
    const T *a = sr + start, *b = hr + start;
    float* d = s.d(row);
    int c = first;
    for (; c + kLanes <= last; c += kLanes) store(d + c, load(b + t.x + c) - load(a + t.x + c));
    if (c < last) {
      const VecF v = load_tail(b + t.x + c, last - c) - load_tail(a + t.x + c, last - c);
      store_tail(d + c, v, last - c);
    }
    const auto outside = [&](int from, int to) {
      for (int k = from; k < to; ++k) {
        const int x = reflected(t.x + k, t.width);
        d[k] = static_cast<float>(b[x]) - static_cast<float>(a[x]);
      }
    };
    outside(begin, first);
    outside(last, end);
  }
}

// Sums the pixel term and |d - blurred d|.  If `gradient`, stores the signs of the latter in
// s.signs, weighted for the transposed blur and with a halo of 2.
inline void pixels(const LossTile& t, bool squared, bool gradient, VecU lane, LossScratch& s,
                   VecF* sums) {
  for (int row = -kHalo; row < t.rows + kHalo; ++row)
    for (int c = -kBlurRadius; c < t.columns + kBlurRadius; c += kLanes)
      store(s.rows(row) + c, blurred_row(s.d(row) + c));
  const int halo = gradient ? kBlurRadius : 0;
  for (int row = -halo; row < t.rows + halo; ++row) {
    const bool counts = row >= 0 && row < t.inside_rows();
    const float edge = t.on_edge_y(row) ? 2.0f : 1.0f;
    // Starts at -2 even without a gradient, so that the sums are bit-identical.
    for (int c = -kBlurRadius; c < t.columns + kBlurRadius; c += kLanes) {
      const VecF d = load(s.d(row) + c);
      const VecF high = d - blurred_column(s.rows(row) + c);
      if (counts) {
        const VecU at = lane + static_cast<uint32_t>(c);
        sums[0] += inside(squared ? d * d : magnitude(d), at, t.inside_columns());
        sums[1] += inside(magnitude(high), at, t.inside_columns());
      }
      if (gradient) store(s.signs(row) + c, edge * load(s.edge_x() + c) * sign(high));
    }
  }
}

// Adds the gradients of padded pixels to those of the pixels that they are copies of.
inline void fold_padding(const LossTile& t, LossScratch& s) {
  for (int row = t.inside_rows(); row < t.rows; ++row) {
    float* to = s.dct(reflected(t.y + row, t.height) - t.y);
    for (int c = 0; c < t.columns; ++c) to[c] += s.dct(row)[c];
  }
  for (int row = 0; row < t.inside_rows(); ++row)
    for (int c = t.inside_columns(); c < t.columns; ++c)
      s.dct(row)[reflected(t.x + c, t.width) - t.x] += s.dct(row)[c];
}

// Computes the gradient of the tile's pixels from d, the signs and s.dct.
template <class T>
void store_gradient(const LossTile& t, const LossWeights& w, T* grad, LossScratch& s) {
  for (int row = -kBlurRadius; row < t.rows + kBlurRadius; ++row)
    for (int c = 0; c < t.columns; c += kLanes)
      store(s.rows(row) + c, blurred_row(s.signs(row) + c));
  for (int row = 0; row < t.inside_rows(); ++row) {
    const float edge = t.on_edge_y(row) ? 0.5f : 1.0f;
    T* to = grad + static_cast<int64_t>(t.y + row) * t.width + t.x;
    for (int c = 0; c < t.inside_columns(); c += kLanes) {
      const VecF d = load(s.d(row) + c);
      const VecF high = load(s.signs(row) + c) - blurred_column(s.rows(row) + c);
      // 1.5 - 0.5 e is 1 / e for e = 1 and e = 2.
      const VecF weight = w.hf * edge * (1.5f - 0.5f * load(s.edge_x() + c));
      const VecF v =
          -w.pixel * (w.squared ? d : sign(d)) - weight * high - w.dct * load(s.dct(row) + c);
      if (c + kLanes <= t.inside_columns())
        store(to + c, v);
      else
        store_tail(to + c, v, t.inside_columns() - c);
    }
  }
}

inline float sum_of_lanes(VecF v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// `grad` is null if only the sums are needed.
template <class T>
void frequency_loss_tile(const T* sr, const T* hr, T* grad, const LossTile& t, const LossWeights& w,
                         LossScratch& s, double* sums) {
  const VecU lane = {ESPAN_ORDER(0)};
  const bool gradient = grad != nullptr;
  VecF lanes[2] = {};
  load_difference(sr, hr, t, s);
  for (int c = -kBlurRadius; c < t.columns + kBlurRadius; ++c)
    s.edge_x()[c] = t.on_edge_x(c) ? 2.0f : 1.0f;
  pixels(t, w.squared, gradient, lane, s, lanes);
  const VecF dct_lanes = dct_blocks(t, gradient, lane, s);
  if (gradient) {
    if (t.inside_rows() < t.rows || t.inside_columns() < t.columns) fold_padding(t, s);
    store_gradient(t, w, grad, s);
  }
  sums[0] = sum_of_lanes(lanes[0]);
  sums[1] = sum_of_lanes(lanes[1]);
  sums[2] = sum_of_lanes(dct_lanes);
}

#undef ESPAN_EXCHANGE
#undef ESPAN_ORDER
