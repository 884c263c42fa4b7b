// A convolution of the image by nested one-dimensional Winograd.  Included after winograd.h.
//
// Every three rows of the kernel are a convolution F(4, 3) along the columns: 6 products for 4
// results instead of 12.  Along the rows the sums are direct: the values that a kernel row reads
// for one pixel are adjacent in an interleaved image.  The image has only three channels, so the
// input transform takes a few instructions per pixel.  A sum has 81 products with a 9x9 kernel.

// Floats of a transformed row of a block of pixels.
inline int64_t head_length(int64_t kernel) {
  return (3 * (kBlock + kernel - 1) + kLanes - 1) / kLanes * kLanes;
}

inline int64_t head_scratch(int64_t kernel, int64_t outputs) {
  return 6 * (head_parts(kernel) * head_length(kernel) + position_size(3, outputs));
}

// Transforms the sums of the pixels [first, first + n) to four rows of results.
template <Activation kActivation>
inline void finish_head(const HeadRow& h, int64_t first, int64_t n, const float* sums,
                        int64_t position) {
  for (int64_t g = 0; g < groups(h.outputs); ++g) {
    const VecF bias = load(h.bias + g * kLanes);
    for (int64_t x = 0; x < n; ++x) {
      const float* m = sums + (g * kBlock + x) * kLanes;
      VecF o[4];
      transform_out(load(m), load(m + position), load(m + 2 * position), load(m + 3 * position),
                    load(m + 4 * position), load(m + 5 * position), o);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        store(h.out[i] + g * h.out_plane + (first + x) * kLanes,
              activate<kActivation>(o[i] + bias, nullptr));
    }
  }
}

inline void head_row(const HeadRow& h) {
  const int64_t parts = head_parts(h.kernel), part = 3 * h.kernel, depth = parts * part;
  const int64_t length = head_length(h.kernel), position = position_size(3, h.outputs);
  float* in = h.scratch;
  float* sums = h.scratch + 6 * parts * length;
  alignas(64) const float zeros[kMaxVecs * kLanes] = {};
  const Product p{part, 6 * length, depth, h.weight_stride, 0, 0, kBlock * kLanes};
  for (int64_t first = 0, n; first < h.pixels; first += n) {
    n = block_size(h.pixels - first);
    for (int64_t i = 0; i < parts; ++i)
      for (int64_t v = 0; v < 3 * (n + h.kernel - 1); v += kLanes) {
        const float* from = h.in + 3 * i * h.in_pitch + 3 * first + v;
        VecF d[6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) d[j] = load(from + j * h.in_pitch);
        transform_row(d, in + 6 * i * length + v, length);
      }
    for (int64_t j = 0; j < 6; ++j)
      product<3>(n, groups(h.outputs), p, in + j * length, h.weights + j * depth * h.weight_stride,
                 zeros, sums + j * position);
    switch (h.activation) {
      case Activation::silu:
        finish_head<Activation::silu>(h, first, n, sums, position);
        break;
      case Activation::relu:
        finish_head<Activation::relu>(h, first, n, sums, position);
        break;
      case Activation::mish:
        finish_head<Activation::mish>(h, first, n, sums, position);
        break;
      default:
        finish_head<Activation::none>(h, first, n, sums, position);
    }
  }
}
