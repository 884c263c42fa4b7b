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
#include "head.h"

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

inline void pointwise_row(const ProductRow& r) {
  const Product p{kLanes,       r.in_pitch,  r.depth,    r.weight_stride,
                  r.init_plane, r.init_step, r.out_plane};
  product<kLanes>(r.pixels, groups(r.outputs), p, r.in, r.weights, r.init, r.out);
}

// Floats for the Winograd products of one block and, in upsample_row, its results and the same
// results in image order; in gated_block its results and a row of the gate's convolution.
inline int64_t network_scratch(int64_t inputs, int64_t outputs) {
  const int64_t pixels = 4 * kBlock * groups(outputs) * kLanes;
  return products_size(inputs, outputs) + 5 * pixels;
}

inline void network_kernels(NetworkKernels* k) {
  *k = {kLanes,   network_scratch, head_scratch, depthwise_scratch, conv_row,
        head_row, pointwise_row,   upsample_row, depthwise_row};
}
