// A 3x3 convolution whose results, while in the cache, go through the gate's 1x1 convolution.
// Included after winograd.h.

// The pixels of one row: h and x, [group][pixel][lane], to out.
template <Activation kActivation>
inline void finish_gate(const ConvRow& c, const ConvRow& to, int row, int64_t pixels, int64_t at,
                        const float* gate) {
  for (int64_t group = 0; group < groups(c.outputs); ++group) {
    const float* g = gate + group * to.out_plane;
    const float* h = to.out[row] + group * to.out_plane;
    const float* x = c.other[row] + group * c.other_plane + at;
    float* out = c.out[row] + group * c.out_plane + at;
    for (int64_t i = 0; i < pixels * kLanes; i += kLanes)
      store(out + i, gate_by<kActivation>(load(h + i), load(x + i), load(g + i)));
  }
}

// Computes the tiles [first, first + n) of a row, n <= kBlock.
inline void gated_block(const ConvRow& c, int64_t first, int64_t n) {
  ConvRow to = c;
  float* results = c.scratch + products_size(c.inputs, c.outputs);
  to.out_plane = 4 * kBlock * kLanes;
  const int64_t row_size = groups(c.outputs) * to.out_plane;
  for (int i = 0; i < 4; ++i) to.out[i] = results + i * row_size;
  float* gate = results + 4 * row_size;
  conv_block(to, first, n, 0);
  const Product p{kLanes, to.out_plane, c.outputs, c.weight_stride, kLanes, 0, to.out_plane};
  for (int i = 0; i < 4; ++i) {
    product<kLanes>(4 * n, groups(c.outputs), p, to.out[i], c.gate_weights, c.gate_bias, gate);
    if (c.activation == Activation::gate_tanh)
      finish_gate<Activation::gate_tanh>(c, to, i, 4 * n, 4 * first * kLanes, gate);
    else
      finish_gate<Activation::gate_linear>(c, to, i, 4 * n, 4 * first * kLanes, gate);
  }
}
