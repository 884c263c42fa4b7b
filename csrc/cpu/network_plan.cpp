#include "network_plan.h"

#include <algorithm>

namespace espan::cpu {
namespace {

// The limit for all rings.  56 MB, two threads' scratch memory and the allocator's rounding are 64
// MB.  On the matrix unit a strip's border costs ESPAN 19 pixels instead of 76, and 32 MB took two
// threads 8% less time than 56 MB for 1920x1080; one thread took no less.
int64_t ring_bytes(Form form) { return (by_winograd(form) ? 56 : 32) << 20; }

// The bytes that a task reads and writes.  The output of the previous layer is then still in the
// second-level cache, except for five rows.
constexpr int64_t kTaskBytes = 1280 << 10;

// Rows of weights are padded to whole vectors of the widest instruction set.
int64_t padded(int64_t channels) { return (channels + 15) / 16 * 16; }

// Floats of the tiles of a layer with `values` inputs in all, in bf16, one or two halves of each.
int64_t tiles_of(int64_t values, int64_t outputs, bool halves) {
  return values / 2 * padded(outputs) * (halves ? 2 : 1);
}

// Inputs are padded to chunks of 32.
int64_t chunked(int64_t values) { return (values + 31) / 32 * 32; }

}  // namespace

bool Layers::of_image(const Layer& l) const {
  return l.kind == Layer::head || layers_[l.input].kind == Layer::image;
}

int64_t Layers::weights_of(const Layer& l) const {
  const int64_t stride = padded(l.outputs);
  if (l.kind == Layer::image) return 0;
  if (by_winograd(form_)) {
    if (l.kind == Layer::head) return 6 * head_parts(l.kernel) * l.kernel * l.inputs * stride;
    if (l.kind == Layer::pointwise) return l.inputs * stride;
    if (l.kind == Layer::depthwise) return 9 * padded(l.inputs) + l.inputs * stride;
    return 36 * (l.bfloat16 ? (l.inputs + 1) / 2 : l.inputs) * stride;
  }
  const bool halves = form_ == Form::bfloat16x3 || of_image(l);
  if (l.kind == Layer::head)
    return tiles_of(l.kernel * chunked(l.kernel * l.inputs), l.outputs, halves);
  if (l.kind == Layer::pointwise) return tiles_of(chunked(l.inputs), l.outputs, halves);
  int64_t values = 0;  // of a row of the kernel
  for (int source : {l.other, l.input})
    if (source >= 0 && (source == l.input || l.kind == Layer::depthwise))
      values += chunked(3 * padded(layers_[source].outputs));
  return tiles_of(3 * values, l.outputs, halves);
}

int64_t Layers::gate_weights_of(const Layer& l) const {
  if (!has_gate_conv(l.activation)) return 0;
  if (by_winograd(form_)) return l.outputs * padded(l.outputs);
  return tiles_of(chunked(padded(l.outputs)), l.outputs, form_ == Form::bfloat16x3);
}

const float* Layers::take(int64_t floats) {
  const float* taken = weights_ == nullptr ? nullptr : weights_ + size_;
  size_ += floats;
  return taken;
}

void Layers::add(Layer layer) {
  layer.weight_stride = padded(layer.outputs);
  layer.bfloat16 = form_ == Form::winograd_bfloat16 &&
                   (layer.kind == Layer::conv || layer.kind == Layer::upsample) && !of_image(layer);
  layer.weights = take(weights_of(layer));
  if (layer.kind != Layer::image) layer.bias = take(layer.weight_stride);
  if (has_gate_conv(layer.activation)) {
    layer.gate_weights = take(gate_weights_of(layer));
    layer.gate_bias = take(layer.weight_stride);
  }
  layers_.push_back(layer);
}

Plan::Plan(const Layers& layers, int64_t height, int64_t width, int64_t lanes)
    : height_(height), width_(width), lanes_(lanes), unit_(unit_of(layers.form())) {
  for (const Layer& layer : layers.all()) add(layer);
  delay_heads();
  for (int i = static_cast<int>(layers_.size()) - 1; i >= 0; --i)
    for (int reader : layers_[i].readers)
      layers_[i].margin =
          std::max(layers_[i].margin, layers_[reader].margin + unit_ * layers_[reader].reach());
  set_rings();
  while (ring_floats(strips_ / 2) * 4 > ring_bytes(layers.form()) && strips_ < units(width))
    ++strips_;
  int64_t widest = 0;  // row of a feature map
  for (const Layer& layer : layers_)
    if (!layer.writes_image()) widest = std::max(widest, row_size(strips_ / 2, layer));
  const int64_t two_units = 2 * 4 * unit_ * widest;
  const int64_t most = units(height) / 8 * unit_;
  group_rows_ = std::max(std::min(kTaskBytes / two_units * unit_, most), group_rows_);
  groups_ = (unit_ * units(height) + layers_.back().lag + group_rows_ - 1) / group_rows_;
  set_rings();
}

void Plan::add(Layer layer) {
  const int index = static_cast<int>(layers_.size());
  for (int source : {layer.input, layer.other}) {
    if (source < 0) continue;
    layer.lag = std::max(layer.lag, layers_[source].lag + unit_ * layer.reach_from(source));
    layers_[source].readers.push_back(index);
  }
  layers_.push_back(layer);
}

// What reads the image is computed as late as its first reader allows, so that its ring is short.
void Plan::delay_heads() {
  for (int i = static_cast<int>(layers_.size()) - 1; i >= 0; --i) {
    Layer& layer = layers_[i];
    if (!layer.reads_image()) continue;
    int64_t lag = layers_.back().lag;
    for (int reader : layer.readers)
      lag = std::min(lag, layers_[reader].lag - unit_ * layers_[reader].reach_from(i));
    layer.lag = lag;
  }
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
  for (int i = 0; i < static_cast<int>(layers_.size()); ++i)
    for (int reader : layers_[i].readers) {
      const Layer& r = layers_[reader];
      const int64_t rows = group_rows_ + r.lag - layers_[i].lag + r.reach_from(i) + more;
      layers_[i].ring = std::max(layers_[i].ring, rows);
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
