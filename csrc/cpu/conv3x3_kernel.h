// A 3x3 convolution and the gradient of its kernel by Winograd's F(4x4, 3x3), for training: the
// weights change with every call, and the feature maps are PyTorch's.  Compiled once per
// instruction set by for_each_isa.h.
//
// Rows are copied to the layout of winograd.h and back, 28% of a forward pass of a batch that is
// larger than the caches.  The copies add the zeros around the image and those that fill the last
// vector of the channels.
#include "activation.h"
#include "product.h"
#include "winograd.h"

// Copies `channels` channels of `width` pixels to [group][pixel][lane], from pixel `left`; the rest
// of the `pixels` pixels become zero.
inline void pack_row(const float* from, int64_t pixel, int64_t width, int64_t channels,
                     int64_t left, int64_t pixels, float* to) {
  const int64_t whole = channels / kLanes, rest = channels % kLanes, plane = pixels * kLanes;
  for (int64_t x = 0; x < width; ++x, from += pixel) {
    float* out = to + (left + x) * kLanes;
    for (int64_t g = 0; g < whole; ++g) store(out + g * plane, load(from + g * kLanes));
    if (rest) store(out + whole * plane, load_tail(from + whole * kLanes, rest));
  }
  for (int64_t g = 0; g < groups(channels); ++g, to += plane) {
    for (int64_t x = 0; x < left; ++x) store(to + x * kLanes, VecF{});
    for (int64_t x = left + width; x < pixels; ++x) store(to + x * kLanes, VecF{});
  }
}

inline void unpack_row(const float* from, int64_t pixels, int64_t width, int64_t channels,
                       int64_t pixel, float* to) {
  const int64_t whole = channels / kLanes, rest = channels % kLanes, plane = pixels * kLanes;
  for (int64_t x = 0; x < width; ++x, from += kLanes, to += pixel) {
    for (int64_t g = 0; g < whole; ++g) store(to + g * kLanes, load(from + g * plane));
    if (rest) store_tail(to + whole * kLanes, load(from + whole * plane), rest);
  }
}

// The six rows that a row of tiles reads.  The next row of tiles shares two of them, which are not
// copied again.
struct Window {
  static constexpr int64_t kRows = 6;
  const Conv3x3Size& size;
  Maps<const float> x;
  float* rows;
  int64_t next = -1;  // the row of tiles whose first two rows are there already

  static int64_t pixels(const Conv3x3Size& s) { return 4 * s.tiles() + 2; }
  static int64_t row_size(const Conv3x3Size& s) { return pixels(s) * groups(s.inputs) * kLanes; }
  static int64_t floats(const Conv3x3Size& s) { return (kRows + 1) * row_size(s); }

  Window(const Conv3x3Size& s, Maps<const float> from, float* memory)
      : size(s), x(from), rows(memory) {
    for (int64_t i = 0; i < row_size(s); i += kLanes) store(rows + kRows * row_size(s) + i, VecF{});
  }

  void read(int64_t tile_row, ConvRow* c) {
    const int64_t image = tile_row / size.tile_rows_of_image();
    const int64_t y = 4 * (tile_row % size.tile_rows_of_image());
    const int64_t length = row_size(size);
    for (int64_t i = next == tile_row && y > 0 ? 2 : 0; i < kRows; ++i) {
      const int64_t from = y - 1 + i;
      if (from >= 0 && from < size.height)
        pack_row(x.at(image, from), x.pixel, size.width, size.inputs, 1, pixels(size),
                 rows + from % kRows * length);
    }
    for (int64_t i = 0; i < kRows; ++i) {
      const int64_t from = y - 1 + i;
      c->in[i] = rows + (from >= 0 && from < size.height ? from % kRows : kRows) * length;
    }
    c->in_plane = pixels(size) * kLanes;
    next = tile_row + 1;
  }
};

inline int64_t conv3x3_forward_scratch(const Conv3x3Size& s) {
  return Window::floats(s) + products_size(s.inputs, s.outputs) +
         4 * 4 * s.tiles() * groups(s.outputs) * kLanes;
}

inline void conv3x3_forward(const Conv3x3Forward& f, int64_t first, int64_t end, float* scratch) {
  const Conv3x3Size& s = f.size;
  Window window(s, f.x, scratch);
  ConvRow c{};
  c.scratch = scratch + Window::floats(s);
  float* out = c.scratch + products_size(s.inputs, s.outputs);
  const int64_t pixels = 4 * s.tiles();
  for (int i = 0; i < 4; ++i) c.out[i] = out + i * pixels * groups(s.outputs) * kLanes;
  c.out_plane = pixels * kLanes;
  c.inputs = s.inputs;
  c.outputs = s.outputs;
  c.weights = f.weights;
  c.weight_stride = groups(s.outputs) * kLanes;
  c.bias = f.bias;
  for (int64_t row = first; row < end; ++row) {
    window.read(row, &c);
    for (int64_t tile = 0, n; tile < s.tiles(); tile += n) {
      n = block_size(s.tiles() - tile);
      conv_block(c, tile, n, tile);
    }
    const int64_t image = row / s.tile_rows_of_image(), y = 4 * (row % s.tile_rows_of_image());
    for (int64_t i = 0; i < 4 && y + i < s.height; ++i)
      unpack_row(c.out[i], pixels, s.width, s.outputs, f.y.pixel, f.y.at(image, y + i));
  }
}

// A times four values of the gradient, 4 -> 6, is the transpose of transform_out.  Its rows for the
// points +-a are the sum and the difference of one pair, and so are those for +-b.
struct GradientPair {
  VecF even, odd;
};
inline GradientPair gradient_a(const VecF* g) {
  return {(1 / kA) * g[0] + kA * g[2], g[1] + (kA * kA) * g[3]};
}
inline GradientPair gradient_b(const VecF* g) {
  return {(1 / (kB * kB)) * g[0] + g[2], (1 / kB) * g[1] + kB * g[3]};
}

__attribute__((always_inline)) inline void transform_gradient_row(const VecF* g, float* out,
                                                                  int64_t position) {
  const GradientPair a = gradient_a(g), b = gradient_b(g);
  store(out, g[0]);
  store(out + position, a.even + a.odd);
  store(out + 2 * position, a.even - a.odd);
  store(out + 3 * position, b.even + b.odd);
  store(out + 4 * position, b.even - b.odd);
  store(out + 5 * position, g[3]);
}

// The two rows of A g A^T for a pair of points.
template <GradientPair (*kPair)(const VecF*)>
__attribute__((always_inline)) inline void transform_gradient_pair(const float* rows, int64_t row,
                                                                   float* out, int64_t position) {
  VecF sum[4], difference[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    VecF g[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) g[i] = load(rows + i * row + j * kLanes);
    const GradientPair pair = kPair(g);
    sum[j] = pair.even + pair.odd;
    difference[j] = pair.even - pair.odd;
  }
  transform_gradient_row(sum, out, position);
  transform_gradient_row(difference, out + 6 * position, position);
}

// Transforms n tiles of one channel group of four rows: A g A^T, to out[position][tile].
__attribute__((noinline)) inline void transform_gradient(const float* rows, int64_t row, int64_t n,
                                                         float* out, int64_t position) {
  for (int64_t t = 0; t < n; ++t, rows += 4 * kLanes, out += kLanes) {
    VecF first[4], last[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      first[j] = load(rows + j * kLanes);
      last[j] = load(rows + 3 * row + j * kLanes);
    }
    transform_gradient_row(first, out, position);
    transform_gradient_pair<gradient_a>(rows, row, out + 6 * position, position);
    transform_gradient_pair<gradient_b>(rows, row, out + 18 * position, position);
    transform_gradient_row(last, out + 30 * position, position);
  }
}

// sums[i][o] += sum over tiles of in[tile][i] * grad[tile][o], for kRows inputs of a group and
// kVecs groups of outputs.
template <int kRows, int kVecs>
inline void add_products(const float* in, const float* grad, int64_t tiles, float* sums,
                         int64_t stride) {
  VecF sum[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int o = 0; o < kVecs; ++o) sum[i][o] = load(sums + i * stride + o * kLanes);
  int64_t t = 0;
  do {
    VecF g[kVecs];
#pragma GCC unroll 3
    for (int o = 0; o < kVecs; ++o) g[o] = load(grad + (o * kBlock + t) * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const VecF x = broadcast(in[t * kLanes + i]);
#pragma GCC unroll 3
      for (int o = 0; o < kVecs; ++o) sum[i][o] = sum[i][o] + x * g[o];
    }
  } while (++t < tiles);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 3
    for (int o = 0; o < kVecs; ++o) store(sums + i * stride + o * kLanes, sum[i][o]);
}

// All inputs of a group, with kVecs groups of outputs.
template <int kVecs>
inline void add_products_of_group(const float* in, const float* grad, int64_t tiles, float* sums,
                                  int64_t stride) {
  constexpr int kRows = kLanes == 16 ? 8 : 4;  // 24 sums with AVX-512, 12 otherwise
  for (int i = 0; i < kLanes; i += kRows)
    add_products<kRows, kVecs>(in + i, grad, tiles, sums + i * stride, stride);
}

// A block of tiles, perhaps of several rows, transformed.
struct GradientBlock {
  float *in, *grad;
  int64_t in_position, grad_position;
  int64_t tiles = 0;

  static int64_t position(int64_t channels) { return position_size(channels, channels); }
  static int64_t floats(const Conv3x3Size& s) {
    return kPositions * (position(s.inputs) + position(s.outputs));
  }

  GradientBlock(const Conv3x3Size& s, float* memory)
      : in(memory),
        grad(memory + kPositions * position(s.inputs)),
        in_position(position(s.inputs)),
        grad_position(position(s.outputs)) {}

  // Adds its products and empties it.
  void add_to(const Conv3x3Size& s, float* weights) {
    const int64_t inputs = groups(s.inputs), outputs = groups(s.outputs), stride = outputs * kLanes;
    constexpr int64_t plane = kBlock * kLanes;
    for (int64_t p = 0; tiles > 0 && p < kPositions; ++p)
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t o = 0, now; o < outputs; o += now) {
          const int64_t left = outputs - o;
          now = left == 4 ? 2 : left < 3 ? left : 3;
          const float* from = in + p * in_position + i * plane;
          const float* by = grad + p * grad_position + o * plane;
          float* to = weights + (p * inputs + i) * kLanes * stride + o * kLanes;
          if (now == 3)
            add_products_of_group<3>(from, by, tiles, to, stride);
          else if (now == 2)
            add_products_of_group<2>(from, by, tiles, to, stride);
          else
            add_products_of_group<1>(from, by, tiles, to, stride);
        }
    tiles = 0;
  }
};

inline int64_t conv3x3_gradient_scratch(const Conv3x3Size& s) {
  return Window::floats(s) + GradientBlock::floats(s) +
         4 * 4 * s.tiles() * groups(s.outputs) * kLanes;
}

// Adds the pixels of a packed row, whose number is a multiple of 4, in float64.
inline void add_row(const float* row, int64_t pixels, int64_t channels, double* sums) {
  typedef double VecD __attribute__((vector_size(8 * kLanes)));
  for (int64_t c = 0; c < channels; c += kLanes) {
    VecD sum{};
    for (int64_t x = 0; x < pixels; x += 4, row += 4 * kLanes)
      sum += __builtin_convertvector(
          (load(row) + load(row + kLanes)) + (load(row + 2 * kLanes) + load(row + 3 * kLanes)),
          VecD);
    for (int64_t i = 0; i < kLanes && c + i < channels; ++i) sums[c + i] += sum[i];
  }
}

inline void conv3x3_gradient(const Conv3x3Gradient& g, int64_t first, int64_t end, float* scratch) {
  const Conv3x3Size& s = g.size;
  Window window(s, g.x, scratch);
  GradientBlock block(s, scratch + Window::floats(s));
  float* rows = scratch + Window::floats(s) + GradientBlock::floats(s);
  const int64_t pixels = 4 * s.tiles(), plane = pixels * kLanes;
  const int64_t row_size = groups(s.outputs) * plane;
  ConvRow c{};
  for (int64_t row = first; row < end; ++row) {
    window.read(row, &c);
    const int64_t image = row / s.tile_rows_of_image(), y = 4 * (row % s.tile_rows_of_image());
    for (int64_t i = 0; i < 4; ++i) {
      float* to = rows + i * row_size;
      const bool inside = y + i < s.height;
      pack_row(g.grad.at(image, inside ? y + i : 0), g.grad.pixel, inside ? s.width : 0, s.outputs,
               0, pixels, to);
      add_row(to, pixels, s.outputs, g.bias);
    }
    for (int64_t tile = 0, n; tile < s.tiles(); tile += n) {
      n = block_size(s.tiles() - tile);
      if (block.tiles + n > kBlock) block.add_to(s, g.weights);
      const int64_t at = block.tiles * kLanes;
      for (int64_t i = 0; i < groups(s.inputs); ++i)
        transform_tiles_in(c, i, tile, n, block.in + i * kBlock * kLanes + at, block.in_position);
      for (int64_t i = 0; i < groups(s.outputs); ++i)
        transform_gradient(rows + i * plane + tile * 4 * kLanes, row_size, n,
                           block.grad + i * kBlock * kLanes + at, block.grad_position);
      block.tiles += n;
    }
  }
  block.add_to(s, g.weights);
}

// G of espan_kernels/packing/cpu_winograd.py.
constexpr float kRowA = 1 / (2 * kA * (kA * kA - kB * kB)), kRowB = 1 / (2 * (kB * kB - kA * kA));
constexpr float kG[6][3] = {
    {1 / (kA * kA * kB * kB), 0, 0},       {kRowA, kRowA * kA, kRowA * kA * kA},
    {kRowA, -kRowA * kA, kRowA * kA * kA}, {kRowB, kRowB * kB, kRowB * kB * kB},
    {kRowB, -kRowB * kB, kRowB * kB * kB}, {0, 0, 1}};

// G g G^T for all kernels g.
inline void conv3x3_transform(const Conv3x3Size& s, const float* weight, const int64_t* strides,
                              float* to) {
  const int64_t stride = groups(s.outputs) * kLanes;
  for (int64_t i = 0; i < s.inputs; ++i)
    for (int64_t o = 0; o < s.outputs; o += kLanes) {
      float taps[9][kLanes] = {};
      for (int64_t lane = 0; lane < kLanes && o + lane < s.outputs; ++lane) {
        const float* from = weight + (o + lane) * strides[0] + i * strides[1];
        for (int t = 0; t < 9; ++t) taps[t][lane] = from[t / 3 * strides[2] + t % 3 * strides[3]];
      }
      for (int p = 0; p < 6; ++p) {
        VecF row[3];
        for (int x = 0; x < 3; ++x)
          row[x] = kG[p][0] * load(taps[x]) + kG[p][1] * load(taps[3 + x]) +
                   kG[p][2] * load(taps[6 + x]);
        for (int q = 0; q < 6; ++q)
          store(to + ((6 * p + q) * s.inputs + i) * stride + o,
                kG[q][0] * row[0] + kG[q][1] * row[1] + kG[q][2] * row[2]);
      }
    }
}

// G^T w G for all products w.
inline void conv3x3_transform_back(const Conv3x3Size& s, const float* weights, float* grad_weight) {
  const int64_t stride = groups(s.outputs) * kLanes;
  const int64_t position = groups(s.inputs) * kLanes * stride;
  for (int64_t i = 0; i < s.inputs; ++i)
    for (int64_t o = 0; o < s.outputs; o += kLanes) {
      VecF rows[6][3];
      for (int p = 0; p < 6; ++p)
        for (int x = 0; x < 3; ++x) {
          rows[p][x] = VecF{};
          for (int q = 0; q < 6; ++q)
            rows[p][x] += kG[q][x] * load(weights + (6 * p + q) * position + i * stride + o);
        }
      for (int t = 0; t < 9; ++t) {
        VecF sum{};
        for (int p = 0; p < 6; ++p) sum += kG[p][t / 3] * rows[p][t % 3];
        for (int64_t lane = 0; lane < kLanes && o + lane < s.outputs; ++lane)
          grad_weight[((o + lane) * s.inputs + i) * 9 + t] = sum[lane];
      }
    }
}

inline void conv3x3_kernels(Conv3x3Kernels* k) {
  *k = {kLanes,          conv3x3_forward_scratch, conv3x3_gradient_scratch, conv3x3_transform,
        conv3x3_forward, conv3x3_gradient,        conv3x3_transform_back};
}
