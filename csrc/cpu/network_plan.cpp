#include "network_plan.h"

#include <algorithm>

namespace espan::cpu {
namespace {

// Two threads' scratch and the allocator's rounding leave 64 MB in all.
constexpr int64_t kRingBytes = 56 << 20;
// What a task reads and writes: a layer then finds what the one before it wrote in the second-level
// cache, but for five rows.
constexpr int64_t kTaskBytes = 1280 << 10;

int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

// Walks through the packed weights: a layer's weights, then its bias, each row padded to 16.
class Packed {
 public:
  explicit Packed(const float* data) : data_(data) {}

  Layer take(Layer layer, int64_t rows) {
    layer.weight_stride = padded(layer.outputs);
    layer.weights = data_ + at_;
    layer.bias = layer.weights + rows * layer.weight_stride;
    at_ += (rows + 1) * layer.weight_stride;
    return layer;
  }
  int64_t at() const { return at_; }

 private:
  const float* data_;
  int64_t at_ = 16;  // the mean colour comes first
};

// Calls add(layer) for each layer of the network; add returns its index.
template <class Add>
int64_t build(const Description& d, const float* data, const Add& add) {
  const int64_t c = d.channels;
  Packed packed(data);
  const auto conv = [&](int input, Activation activation, int other) {
    return add(packed.take({Layer::conv, input, other, activation, c, c}, 36 * c));
  };
  const auto pointwise = [&](int input, int other) {
    return add(packed.take({Layer::pointwise, input, other, Activation::none, c, c}, c));
  };
  const int64_t taps = 3 * d.head_kernel * d.head_kernel;
  int last = add(packed.take({Layer::head, -1, -1, Activation::none, 3, c}, taps));
  int side = pointwise(last, -1);
  for (size_t block = 0; block < d.convs.size(); ++block) {
    const int first_activation = conv(last, Activation::silu, -1);
    int o = first_activation;
    for (int64_t i = 2; i < d.convs[block]; ++i) o = conv(o, Activation::silu, -1);
    last = conv(o, Activation::gate, last);
    if (block == 0) side = pointwise(last, side);
    if (d.concat_activation && block + 1 == d.convs.size())
      side = pointwise(first_activation, side);
  }
  const int fused = conv(last, Activation::add, side);
  const int64_t outputs = 3 * d.scale * d.scale;
  add(packed.take({Layer::upsample, fused, -1, Activation::none, c, outputs}, 36 * c));
  return packed.at();
}

}  // namespace

int64_t packed_size(const Description& d) {
  int count = 0;
  return build(d, nullptr, [&](const Layer&) { return count++; });
}

Plan::Plan(const Description& d, const float* packed, int64_t height, int64_t width, int64_t lanes)
    : height_(height), width_(width), lanes_(lanes), columns_((width + 3) / 4) {
  build(d, packed, [this](const Layer& layer) { return add(layer); });
  for (int i = static_cast<int>(layers_.size()) - 1; i >= 0; --i)
    for (int reader : layers_[i].readers)
      layers_[i].margin =
          std::max(layers_[i].margin, layers_[reader].margin + layers_[reader].reach());
  set_rings();
  while (ring_floats(strips_ / 2) * 4 > kRingBytes && strips_ < columns_) ++strips_;
  const int64_t tile_rows = (height + 3) / 4;
  const int64_t two_rows = 2 * 4 * 4 * row_size(strips_ / 2, layers_.front());
  group_rows_ =
      4 * std::clamp<int64_t>(kTaskBytes / two_rows, 1, std::max<int64_t>(tile_rows / 8, 1));
  groups_ = (4 * (tile_rows + layers_.back().lag) + group_rows_ - 1) / group_rows_;
  set_rings();
}

int Plan::add(Layer layer) {
  const int index = static_cast<int>(layers_.size());
  for (int source : {layer.input, layer.other}) {
    if (source < 0) continue;
    const int64_t behind = source == layer.input ? layer.reach() : 0;
    layer.lag = std::max(layer.lag, layers_[source].lag + behind);
    layers_[source].readers.push_back(index);
  }
  layers_.push_back(layer);
  return index;
}

Plan::Tiles Plan::tiles(int64_t strip, const Layer& layer) const {
  const int64_t first = std::max<int64_t>(columns_ * strip / strips_ - layer.margin, 0);
  const int64_t end = std::min(columns_ * (strip + 1) / strips_ + layer.margin, columns_);
  return {first, end - first};
}

int64_t Plan::first_row(const Layer& layer, int64_t group) const {
  return std::clamp<int64_t>(group * group_rows_ - 4 * layer.lag, 0, (height_ + 3) / 4 * 4);
}

// A layer's group and all rows above it that its reader's next group still reads, where the layers
// take turns.
void Plan::set_rings() {
  for (Layer& layer : layers_)
    for (int reader : layer.readers) {
      const Layer& r = layers_[reader];
      layer.ring = std::max(layer.ring, group_rows_ + 4 * (r.lag - layer.lag) + r.reach());
    }
}

// A pixel of zeros, or the neighbour strip's, on each side.
int64_t Plan::plane(int64_t strip, const Layer& layer) const {
  return (4 * tiles(strip, layer).count + 2) * lanes_;
}

int64_t Plan::row_size(int64_t strip, const Layer& layer) const {
  return plane(strip, layer) * ((layer.outputs + lanes_ - 1) / lanes_);
}

int64_t Plan::longest_row(int64_t strip) const {
  int64_t longest = 0;
  for (const Layer& layer : layers_) longest = std::max(longest, row_size(strip, layer));
  return longest;
}

int64_t Plan::ring_floats(int64_t strip) const {
  int64_t floats = longest_row(strip);
  for (const Layer& layer : layers_) floats += layer.ring * row_size(strip, layer);
  return floats;
}

}  // namespace espan::cpu
