// The layers of the network, row by row.  Compiled once per instruction set by for_each_isa.h, and
// once more by network_bf16.cpp.
#include "activation.h"
#if ESPAN_BFLOAT16
#include "vec_bf16.h"
#endif
#include "product.h"
#include "to_image.h"
#include "winograd.h"
#include "winograd_to_image.h"
//
#include "depthwise.h"
#include "gate_conv.h"

inline void conv_row(const ConvRow& c) {
  const bool gate_conv = has_gate_conv(c.activation);
  int64_t first = 0;
  while (first < c.tiles) {
    const int64_t n = block_size(c.tiles - first);
    if (gate_conv)
      gated_block(c, first, n);
    else
      conv_block(c, first, n, first);
    first += n;
  }
}

template <Activation kActivation>
inline void activate_row(const ProductRow& r) {
  for (int64_t g = 0; g < groups(r.outputs); ++g) {
    float* row = r.out + g * r.out_plane;
    for (int64_t i = 0; i < r.pixels; ++i, row += kLanes)
      store(row, activate<kActivation>(load(row), nullptr));
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
  if (r.activation == Activation::silu) activate_row<Activation::silu>(r);
  if (r.activation == Activation::relu) activate_row<Activation::relu>(r);
  if (r.activation == Activation::mish) activate_row<Activation::mish>(r);
}

inline void pointwise_row(const ProductRow& r) {
  const Product p{kLanes,       r.in_pitch,  r.depth,    r.weight_stride,
                  r.init_plane, r.init_step, r.out_plane};
  product<kLanes>(r.pixels, groups(r.outputs), p, r.in, r.weights, r.init, r.out);
}

// Floats for the Winograd products of one block and, in upsample_row, its results and the same
// results in image order; in gated_block its results and a row of the gate's convolution.
inline int64_t network_scratch(int64_t inputs, int64_t outputs) {
  const int64_t pixels = 4 * kBlock * groups(outputs) * kLanes;
  return kPositions * (products_in(inputs) + products_out(outputs)) + 5 * pixels;
}

inline void network_kernels(NetworkKernels* k) {
  *k = {kLanes,   network_scratch, depthwise_scratch, conv_row,
        head_row, pointwise_row,   upsample_row,      depthwise_row};
}
