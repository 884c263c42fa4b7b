// Winograd's F(4x4, 3x3): 16 outputs of a 3x3 convolution from 36 products instead of 144, with the
// interpolation points 0, 5/8, -5/8, 3/2, -3/2 and infinity.  Included after product.h, once per
// instruction set.
//
//   out = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A
//
// d is the 6x6 input of a tile; G g G^T is computed when the weights are packed.  The products are
// in fp32 or, where vec_bf16.h is included, of bf16 values.  In bf16 these points have half the
// error of 0, 1, -1, 2, -2 and infinity, and they need as many instructions.
constexpr float kA = 0.625f, kB = 1.5f;

// Rows of B^T, 6 -> 6.  Rows 1 and 2 share subexpressions, as do rows 3 and 4.
inline VecF row_0(VecF i0, VecF i2, VecF i4) {
  return (kA * kA * kB * kB) * i0 + (i4 - (kA * kA + kB * kB) * i2);
}
inline VecF row_5(VecF i1, VecF i3, VecF i5) { return row_0(i1, i3, i5); }

inline void rows_12(VecF i1, VecF i2, VecF i3, VecF i4, VecF& o1, VecF& o2) {
  const VecF even = i4 - (kB * kB) * i2, odd = i3 - (kB * kB) * i1;
  o1 = even + kA * odd;
  o2 = even - kA * odd;
}

inline void rows_34(VecF i1, VecF i2, VecF i3, VecF i4, VecF& o3, VecF& o4) {
  const VecF even = i4 - (kA * kA) * i2, odd = i3 - (kA * kA) * i1;
  o3 = even + kB * odd;
  o4 = even - kB * odd;
}

// Multiplies a row of B^T d by B and stores it at six positions.  As a call, with its operands in
// memory, it made the input transform a fifth slower.
template <class T>
__attribute__((always_inline)) inline void transform_row(const VecF* d, T* out, int64_t position) {
  VecF o1, o2, o3, o4;
  rows_12(d[1], d[2], d[3], d[4], o1, o2);
  rows_34(d[1], d[2], d[3], d[4], o3, o4);
  store(out, row_0(d[0], d[2], d[4]));
  store(out + position, o1);
  store(out + 2 * position, o2);
  store(out + 3 * position, o3);
  store(out + 4 * position, o4);
  store(out + 5 * position, row_5(d[1], d[3], d[5]));
}

// A^T, 6 -> 4.  Its columns for the points +-a are divided by a, those for +-b by b^2, and G's rows
// multiplied, which saves two products.
inline void transform_out(const VecF i0, const VecF i1, const VecF i2, const VecF i3, const VecF i4,
                          const VecF i5, VecF* o) {
  const VecF a = i1 + i2, b = i1 - i2, c = i3 + i4, d = i3 - i4;
  o[0] = i0 + ((1 / kA) * a + (1 / (kB * kB)) * c);
  o[1] = b + (1 / kB) * d;
  o[2] = kA * a + c;
  o[3] = (kA * kA) * b + (kB * d + i5);
}

constexpr int kPositions = 36;
// Tiles per block: two register blocks share the weights of a position in the first-level cache,
// and the products' inputs and outputs, 36 x 28 tiles x C floats each, stay in the second-level
// cache.
constexpr int kBlock = 28;
// The distance in floats between positions.  It is an odd number of cache lines, so that positions
// map to different cache sets.
inline int64_t spread(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

inline int64_t groups(int64_t channels) { return (channels + kLanes - 1) / kLanes; }

// T holds one channel of a transformed tile, or a pair in bf16.
template <class T>
constexpr int64_t kChannels = 1;
#if ESPAN_BFLOAT16
template <>
constexpr int64_t kChannels<Pair> = 2;
#endif
template <class T>
constexpr int kStep = kLanes / kChannels<T>;  // from tile to tile

// Floats of one position of a block.
inline int64_t position_size(int64_t inputs, int64_t outputs) {
  return spread(groups(inputs > outputs ? inputs : outputs) * kBlock * kLanes);
}
// Floats of a block's products.  The outputs of a position take the place of the inputs of the
// position before it, which are not needed any more.
inline int64_t products_size(int64_t inputs, int64_t outputs) {
  return (kPositions + 1) * position_size(inputs, outputs);
}

// Transforms the tiles [first, first + n) of one channel group to out[position][tile], one or two
// rows of B^T d at a time so that they stay in registers: storing all of B^T d first took twice as
// long.
template <class T>
__attribute__((noinline)) void transform_tiles_in(const ConvRow& c, int64_t group, int64_t first,
                                                  int64_t n, T* out, int64_t position) {
  for (int64_t t = 0; t < n; ++t, out += kStep<T>) {
    const int64_t at = group * c.in_plane + (first + t) * 4 * kLanes;
    const float* in[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) in[i] = c.in[i] + at;
    VecF a[6], b[6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      const int x = j * kLanes;
      a[j] = row_0(load(in[0] + x), load(in[2] + x), load(in[4] + x));
    }
    transform_row(a, out, position);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      const int x = j * kLanes;
      rows_12(load(in[1] + x), load(in[2] + x), load(in[3] + x), load(in[4] + x), a[j], b[j]);
    }
    transform_row(a, out + 6 * position, position);
    transform_row(b, out + 12 * position, position);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      const int x = j * kLanes;
      rows_34(load(in[1] + x), load(in[2] + x), load(in[3] + x), load(in[4] + x), a[j], b[j]);
    }
    transform_row(a, out + 18 * position, position);
    transform_row(b, out + 24 * position, position);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      const int x = j * kLanes;
      a[j] = row_5(load(in[1] + x), load(in[3] + x), load(in[5] + x));
    }
    transform_row(a, out + 30 * position, position);
  }
}

// Transforms the products of n tiles of one channel group to the output rows, starting at tile
// `first`.
template <Activation kActivation>
__attribute__((noinline)) void transform_tiles_out(const ConvRow& c, int64_t group, int64_t first,
                                                   int64_t n, const float* in, int64_t position) {
  const VecF bias = load(c.bias + group * kLanes);
  for (int64_t t = 0; t < n; ++t, in += kLanes) {
    VecF columns[6][4];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      const float* m = in + j * position;
      transform_out(load(m), load(m + 6 * position), load(m + 12 * position),
                    load(m + 18 * position), load(m + 24 * position), load(m + 30 * position),
                    columns[j]);
    }
    const int64_t at = (first + t) * 4 * kLanes;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      VecF o[4];
      transform_out(columns[0][i], columns[1][i], columns[2][i], columns[3][i], columns[4][i],
                    columns[5][i], o);
      const float* other = c.other[i] + group * c.other_plane + at;
      float* out = c.out[i] + group * c.out_plane + at;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        store(out + j * kLanes, activate<kActivation>(o[j] + bias, other + j * kLanes));
    }
  }
}

inline void transform_group_out(const ConvRow& c, int64_t group, int64_t first, int64_t n,
                                const float* in, int64_t position) {
  switch (c.activation) {
    case Activation::none:
      return transform_tiles_out<Activation::none>(c, group, first, n, in, position);
    case Activation::silu:
      return transform_tiles_out<Activation::silu>(c, group, first, n, in, position);
    case Activation::relu:
      return transform_tiles_out<Activation::relu>(c, group, first, n, in, position);
    case Activation::mish:
      return transform_tiles_out<Activation::mish>(c, group, first, n, in, position);
    case Activation::add:
      return transform_tiles_out<Activation::add>(c, group, first, n, in, position);
    case Activation::gate_sigmoid:
      return transform_tiles_out<Activation::gate_sigmoid>(c, group, first, n, in, position);
    case Activation::gate_linear:
    case Activation::gate_tanh:  // by gated_block
      return transform_tiles_out<Activation::none>(c, group, first, n, in, position);
  }
}

template <class T>
inline void conv_block_of(const ConvRow& c, int64_t first, int64_t n, int64_t out_first) {
  constexpr int64_t plane = kBlock * kStep<T>;
  const int64_t position = position_size(c.inputs, c.outputs);
  float* out = c.scratch;
  T* in = reinterpret_cast<T*>(c.scratch + position);
  for (int64_t g = 0; g < groups(c.inputs); ++g)
    transform_tiles_in(c, g, first, n, in + g * plane, position);
  alignas(64) const float zeros[kMaxVecs * kLanes] = {};
  const int64_t depth = (c.inputs + kChannels<T> - 1) / kChannels<T>;
  const Product p{kStep<T>, plane, depth, c.weight_stride, 0, 0, kBlock * kLanes};
  const T* weights = reinterpret_cast<const T*>(c.weights);
  for (int i = 0; i < kPositions; ++i)
    product<kStep<T>>(n, groups(c.outputs), p, in + i * position,
                      weights + i * depth * c.weight_stride, zeros, out + i * position);
  for (int64_t g = 0; g < groups(c.outputs); ++g)
    transform_group_out(c, g, out_first, n, out + g * kBlock * kLanes, position);
}

// Computes the tiles [first, first + n) of a row, n <= kBlock, and stores them from tile out_first.
inline void conv_block(const ConvRow& c, int64_t first, int64_t n, int64_t out_first) {
#if ESPAN_BFLOAT16
  if (c.bfloat16) return conv_block_of<Pair>(c, first, n, out_first);
#endif
  conv_block_of<float>(c, first, n, out_first);
}

// The size of the next block when `tiles` tiles are left, for blocks of nearly equal size.
inline int64_t block_size(int64_t tiles) {
  const int64_t blocks = (tiles + kBlock - 1) / kBlock;
  return (tiles + blocks - 1) / blocks;
}
