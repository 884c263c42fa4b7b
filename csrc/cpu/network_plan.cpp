#include "network_plan.h"

#include <algorithm>

namespace espan::cpu {
namespace {

// The limit for all rings.  56 MB, two threads' scratch memory and the allocator's rounding are 64
// MB.  On the matrix unit a strip's border costs ESPAN 19 pixels instead of 76, and 32 MB took two
// threads 8% less time than 56 MB for 1920x1080; one thread took no less.
int64_t ring_bytes(Form form) { return (form == Form::winograd ? 56 : 32) << 20; }

// The bytes that a task reads and writes.  The output of the previous layer is then still in the
// second-level cache, except for five rows.
constexpr int64_t kTaskBytes = 1280 << 10;

// Rows of weights are padded to whole vectors of the widest instruction set.
int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

// Rows of weight tiles.
int64_t chunks_of(int64_t values) { return (values + 31) / 32; }

}  // namespace

// The weights are `rows` rows in the Winograd form, `chunks` chunks of 32 inputs in a tiled form.
int Layers::add(Layer layer, int64_t rows, int64_t chunks) {
  layer.weight_stride = padded(layer.outputs);
  int64_t size = rows * layer.weight_stride;
  if (form_ != Form::winograd) {
    const bool halves = form_ == Form::bfloat16x3 || layer.kind == Layer::head;
    size = chunks * (32 / 2) * layer.weight_stride * (halves ? 2 : 1);
  }
  if (weights_ != nullptr) {
    layer.weights = weights_ + size_;
    layer.bias = layer.weights + size;
  }
  size_ += size + layer.weight_stride;
  layers_.push_back(layer);
  return static_cast<int>(layers_.size()) - 1;
}

int Layers::head(int64_t c, int64_t kernel) {
  Layer layer{Layer::head, -1, -1, Activation::none, 3, c};
  layer.kernel = kernel;
  return add(layer, 3 * kernel * kernel, kernel * chunks_of(3 * kernel));
}

int Layers::conv(int64_t c, int input, Activation activation, int other) {
  return add({Layer::conv, input, other, activation, c, c}, 36 * c, 3 * chunks_of(3 * padded(c)));
}

int Layers::pointwise(int64_t c, int input, int other) {
  return add({Layer::pointwise, input, other, Activation::none, c, c}, c, chunks_of(c));
}

int Layers::upsample(int64_t c, int64_t scale, int input) {
  return add({Layer::upsample, input, -1, Activation::none, c, 3 * scale * scale}, 36 * c,
             3 * chunks_of(3 * padded(c)));
}

Plan::Plan(const Layers& layers, int64_t height, int64_t width, int64_t lanes)
    : height_(height), width_(width), lanes_(lanes), unit_(unit_of(layers.form())) {
  for (const Layer& layer : layers.all()) add(layer);
  for (int i = static_cast<int>(layers_.size()) - 1; i >= 0; --i)
    for (int reader : layers_[i].readers)
      layers_[i].margin =
          std::max(layers_[i].margin, layers_[reader].margin + unit_ * layers_[reader].reach());
  set_rings();
  while (ring_floats(strips_ / 2) * 4 > ring_bytes(layers.form()) && strips_ < units(width))
    ++strips_;
  const int64_t two_units = 2 * 4 * unit_ * row_size(strips_ / 2, layers_.front());
  const int64_t most = units(height) / 8 * unit_;
  group_rows_ = std::max(std::min(kTaskBytes / two_units * unit_, most), group_rows_);
  groups_ = (unit_ * units(height) + layers_.back().lag + group_rows_ - 1) / group_rows_;
  set_rings();
}

void Plan::add(Layer layer) {
  const int index = static_cast<int>(layers_.size());
  for (int source : {layer.input, layer.other}) {
    if (source < 0) continue;
    const int64_t behind = source == layer.input ? unit_ * layer.reach() : 0;
    layer.lag = std::max(layer.lag, layers_[source].lag + behind);
    layers_[source].readers.push_back(index);
  }
  layers_.push_back(layer);
}

Plan::Columns Plan::columns(int64_t strip, const Layer& layer) const {
  const int64_t all = units(width_);
  const int64_t first = std::max<int64_t>(all * strip / strips_ * unit_ - layer.margin, 0);
  const int64_t end = std::min(all * (strip + 1) / strips_ * unit_ + layer.margin, all * unit_);
  return {first, end - first};
}

int64_t Plan::first_row(const Layer& layer, int64_t group) const {
  return std::clamp<int64_t>(group * group_rows_ - layer.lag, 0, units(height_) * unit_);
}

// A ring holds one group of a layer and all rows above it that its reader's next group reads, if
// the two layers alternate.  On the matrix unit it holds one more group, so that they need not: two
// threads took 15% less time for 128x128.  Winograd's rings are already longer than that.
void Plan::set_rings() {
  const int64_t more = unit_ == 1 ? group_rows_ : 0;
  for (Layer& layer : layers_)
    for (int reader : layer.readers) {
      const Layer& r = layers_[reader];
      layer.ring = std::max(layer.ring, group_rows_ + r.lag - layer.lag + r.reach() + more);
    }
}

// Includes one pixel on each side: a zero, or one of the neighbouring strip.
int64_t Plan::plane(int64_t strip, const Layer& layer) const {
  return (columns(strip, layer).count + 2) * lanes_;
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
