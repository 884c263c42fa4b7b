// The layers of the network, row by row.  Compiled once per instruction set by for_each_isa.h.
#include "activation.h"
#include "product.h"
#include "to_image.h"
#include "winograd.h"
#include "winograd_to_image.h"

inline void conv_row(const ConvRow& c) {
  int64_t first = 0;
  while (first < c.tiles) {
    const int64_t n = block_size(c.tiles - first);
    conv_block(c, first, n, first);
    first += n;
  }
}

// Sums each kernel row separately: 243 products in one chain had six times PyTorch's error.
inline void head_row(const ProductRow& r) {
  const int64_t part = r.depth / r.parts;
  Product p{part, r.in_pitch, part, r.weight_stride, r.init_plane, r.init_step, r.out_plane};
  const float* init = r.init;
  for (int64_t i = 0; i < r.parts; ++i) {
    product<3, true>(r.pixels, groups(r.outputs), p, r.in + i * r.in_pitch,
                     r.weights + i * part * r.weight_stride, init, r.out);
    init = r.out;
    p.init_plane = r.out_plane;
    p.init_step = kLanes;
  }
}

inline void pointwise_row(const ProductRow& r) {
  const Product p{kLanes,       r.in_pitch,  r.depth,    r.weight_stride,
                  r.init_plane, r.init_step, r.out_plane};
  product<kLanes>(r.pixels, groups(r.outputs), p, r.in, r.weights, r.init, r.out);
}

// Floats for the Winograd products of one block and, in upsample_row, its results and the same
// results in image order.
inline int64_t network_scratch(int64_t inputs, int64_t outputs) {
  const int64_t pixels = 4 * kBlock * groups(outputs) * kLanes;
  return kPositions * (products_in(inputs) + products_out(outputs)) + 5 * pixels;
}

inline void network_kernels(NetworkKernels* k) {
  *k = {kLanes, network_scratch, conv_row, head_row, pointwise_row, upsample_row};
}
