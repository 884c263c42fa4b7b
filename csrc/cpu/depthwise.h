// A depthwise 3x3 and a 1x1, written to the image.  Included after winograd_to_image.h.

// Pixels at a time: of 80 channels, those of the depthwise results take 15 KB of the first-level
// cache, beside the weights of the 1x1.
constexpr int64_t kPoints = 48;

inline int64_t depthwise_scratch(int64_t inputs, int64_t outputs) {
  return (groups(inputs) + 2 * groups(outputs)) * kPoints * kLanes;
}

// One row of one channel group: `pixels` results from three rows, each starting one pixel further
// left.
inline void depthwise_group(const float* const* in, int64_t offset, int64_t pixels,
                            const float* weights, int64_t stride, float* out) {
  VecF w[9];
#pragma GCC unroll 9
  for (int i = 0; i < 9; ++i) w[i] = load(weights + i * stride);
  for (int64_t x = 0; x < pixels * kLanes; x += kLanes) {
    VecF sum[3];
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const float* row = in[i] + offset + x;
      sum[i] = load(row) * w[3 * i];
      sum[i] += load(row + kLanes) * w[3 * i + 1];
      sum[i] += load(row + 2 * kLanes) * w[3 * i + 2];
    }
    store(out + x, sum[0] + sum[1] + sum[2]);
  }
}

template <class T>
inline void depthwise_rows(const DepthwiseRow& d) {
  const ProductRow& r = d.product;
  const int64_t plane = kPoints * kLanes, vecs = groups(r.outputs);
  float* results = d.scratch + (groups(d.maps[0].channels) + groups(d.maps[1].channels)) * plane;
  T* shuffled = reinterpret_cast<T*>(results + vecs * plane);
  const Product p{kLanes, plane, r.depth, r.weight_stride, 0, 0, plane};
  alignas(64) const float zeros[kMaxVecs * kLanes] = {};
  T* to = static_cast<T*>(d.image.data);
  for (int64_t y = 0; y < d.rows; ++y, to += d.scale * d.image.row)
    for (int64_t x = 0; x < d.columns; x += kPoints) {
      const int64_t n = d.columns - x < kPoints ? d.columns - x : kPoints;
      float* t = d.scratch;
      const float* weights = d.weights;
      for (const DepthwiseRow::Map& map : d.maps)
        for (int64_t g = 0; g < groups(map.channels); ++g, t += plane, weights += kLanes)
          depthwise_group(map.in + y, g * map.plane + x * kLanes, n, weights, d.channels_stride, t);
      product<kLanes>(n, vecs, p, d.scratch, r.weights, zeros, results);
      store_image_row(d.image, d.scale, vecs, results, plane, n, shuffled,
                      to + x * d.scale * d.image.column, *d.range);
    }
}

inline void depthwise_row(const DepthwiseRow& d) {
  if (d.image.type == Element::uint8)
    depthwise_rows<uint8_t>(d);
  else
    depthwise_rows<float>(d);
}
