#include "amx_stream.h"

#include <algorithm>
#include <cstring>

#include "amx_rows.h"
#include "image_rows.h"
#include "run_strips.h"

namespace espan::cpu {
namespace {

using namespace amx;

// The plan counts vectors of 16 channels of 4 bytes: two bf16 halves, or the fp32 sums of a
// pointwise layer.  A single half takes the same space.
constexpr int64_t kVector = 16;

int64_t groups_of(const Layer& layer) { return (layer.outputs + kOutputs - 1) / kOutputs; }

// The image rows that a task of the head reads, split into halves.
struct HeadRows {
  int64_t pixels;  // per row, including the kernel's border
  int64_t count;
  // Bytes of one half of a row, including what a block and a chunk read past its end.
  int64_t half() const { return (2 * (3 * (pixels + kBlockPixels) + kChunk) + 63) / 64 * 64; }
  int64_t floats() const { return count * half() / 2 + 3 * pixels; }
};

// The state shared by the tasks of one strip of one image.
class AmxStrip {
 public:
  AmxStrip(const Plan& plan, bool both, int64_t strip, const Images& images, float* memory)
      : plan_(plan), both_(both), images_(images) {
    zeros_ = reinterpret_cast<char*>(memory);
    memory += plan.longest_row(strip);
    std::memset(zeros_, 0, plan.longest_row(strip) * sizeof(float));
    for (const Layer& layer : plan.layers()) {
      Rows rows{};
      rows.data = reinterpret_cast<char*>(memory);
      rows.columns = plan.columns(strip, layer);
      rows.size = plan.row_size(strip, layer) * 4;
      rows.step = rows.size / (rows.columns.count + 2) / 2;
      rows.ring = layer.ring;
      rings_.push_back(rows);
      memory += plan.row_size(strip, layer) * layer.ring;
      clear_borders(rows);
    }
    std::memset(memory, 0, 2 * kChunk);
  }

  void run(const Task& task, float* scratch, Range* range) const {
    const Layer& layer = plan_.layers()[task.layer];
    const int64_t first = plan_.first_row(layer, task.group);
    const int64_t end = plan_.first_row(layer, task.group + 1);
    if (first == end) return;
    if (layer.kind == Layer::image) return copy_image(layer, first, end, scratch);
    if (layer.kind == Layer::head) read_image(layer, first, end, scratch + sums_size(layer));
    std::vector<Halves> in;
    const std::vector<Products> products = read_rows(layer, first, end, in, scratch);
    if (layer.writes_image())
      run_rows(products, scratch,
               [&](const Products& p, int64_t i) { return image_row(layer, p, first + i, range); });
    else if (keeps_sums(layer))
      run_rows(products, scratch, [&](const Products& p, int64_t i) {
        const Rows& rows = rows_of(layer);
        return SumRow{p, rows.sums(first + i, 0), rows.sums_plane()};
      });
    else
      run_rows(products, scratch,
               [&](const Products& p, int64_t i) { return feature_row(layer, p, first + i); });
  }

  // Floats of scratch memory per thread.
  static int64_t scratch_size(const Plan& plan, int64_t strip) {
    int64_t floats = 0;
    for (const Layer& layer : plan.layers()) {
      int64_t size = sums_size(layer);
      if (layer.kind == Layer::image)
        size = plan.columns(strip, layer).count * (layer.outputs + padded(layer));
      if (layer.kind == Layer::head)
        size += head_rows(layer, plan.columns(strip, layer), plan.group_rows()).floats();
      floats = std::max(floats, size);
    }
    return (floats + 15) / 16 * 16;
  }

  // Floats after the rings that the last block of a row may read.
  static int64_t slack(const Plan& plan) {
    int64_t most = 0;
    for (const Layer& layer : plan.layers()) most = std::max(most, layer.inputs + layer.outputs);
    return kBlockPixels * (most + 2 * kVector);
  }

 private:
  // A layer's latest `ring` rows, starting one pixel left of the first column.  A row holds the
  // high halves of its pixels, then the low ones; or, if only other sums start from it, its sums.
  struct Rows {
    char* data;
    int64_t size, step, ring;  // bytes
    Plan::Columns columns;

    int64_t low() const { return size / 2; }
    char* row(int64_t y) const { return data + y % ring * size; }
    // Row y, starting `offset` pixels from the first column.
    Halves at(int64_t y, int64_t offset) const {
      return {row(y) + (offset + 1) * step, step, low()};
    }
    float* sums(int64_t y, int64_t offset) const {
      return reinterpret_cast<float*>(row(y)) + (offset + 1) * kOutputs;
    }
    int64_t sums_plane() const { return (columns.count + 2) * kOutputs; }
  };

  static int64_t padded(const Layer& layer) { return groups_of(layer) * kOutputs; }

  // Whether the layer's readers start their sums from its sums.
  bool keeps_sums(const Layer& layer) const {
    if (layer.readers.empty()) return false;
    const Layer& reader = plan_.layers()[layer.readers.front()];
    const int index = static_cast<int>(&layer - plan_.layers().data());
    return reader.adds() && reader.other == index;
  }

  static int64_t sums_size(const Layer& layer) { return amx::scratch_size(groups_of(layer)); }

  static HeadRows head_rows(const Layer& layer, const Plan::Columns& columns, int64_t rows) {
    return {columns.count + layer.kernel - 1, rows + layer.kernel - 1};
  }

  // Layers read the pixels outside the image as zeros, and no task writes them.  A row's last chunk
  // may extend into the next row's first pixel; its weights there are 0, but a NaN would propagate.
  void clear_borders(const Rows& rows) const {
    for (int64_t y = 0; y < rows.ring; ++y)
      for (char* half : {rows.row(y), rows.row(y) + rows.low()}) {
        std::memset(half, 0, rows.step);
        std::memset(half + (1 + rows.columns.count) * rows.step, 0, rows.step);
      }
  }

  // The image as a feature map.
  void copy_image(const Layer& layer, int64_t first, int64_t end, float* scratch) const {
    const Rows& rows = rows_of(layer);
    const int64_t values = layer.outputs, pixels = rows.columns.count, all = padded(layer);
    float* wide = scratch + pixels * values;
    std::fill_n(wide, pixels * all, 0.0f);
    for (int64_t y = first; y < end; ++y) {
      read_image_rows(images_, y, 1, rows.columns.first, pixels, scratch);
      for (int64_t x = 0; x < pixels; ++x)
        std::copy_n(scratch + x * values, values, wide + x * all);
      const Halves to = rows.at(y, 0);
      // It may write into the pixel right of the row, which is zero, zeros.
      split(wide, pixels * all, to.data, to.data + to.low);
    }
  }

  void read_image(const Layer& layer, int64_t first, int64_t end, float* scratch) const {
    const Rows& rows = rows_of(layer);
    const HeadRows head = head_rows(layer, rows.columns, end - first);
    const int64_t radius = layer.kernel / 2;
    float* row = scratch + head.count * head.half() / 2;
    char* high = reinterpret_cast<char*>(scratch);
    for (int64_t i = 0; i < head.count; ++i, high += 2 * head.half()) {
      read_image_rows(images_, first - radius + i, 1, rows.columns.first - radius, head.pixels,
                      row);
      std::memset(high, 0, 2 * head.half());
      split(row, 3 * head.pixels, high, high + head.half());
    }
  }

  const Rows& rows_of(const Layer& layer) const { return rings_[&layer - plan_.layers().data()]; }

  // The products of the rows [first, end); `in` owns their chunk pointers.
  std::vector<Products> read_rows(const Layer& layer, int64_t first, int64_t end,
                                  std::vector<Halves>& in, const float* scratch) const {
    std::vector<Products> products;
    products.reserve(end - first);
    for (int64_t y = first; y < end; ++y) {
      Products p{};
      p.weights = layer.weights;
      p.init = layer.bias;
      p.init_plane = kOutputs;
      p.pixels = rows_of(layer).columns.count;
      p.groups = groups_of(layer);
      p.three = both_;
      if (layer.kind == Layer::head)
        read_from_image(layer, y - first, in, scratch + sums_size(layer), p);
      else
        read_from_layers(layer, rows_of(layer), y, in, p);
      products.push_back(p);
    }
    const int64_t chunks = static_cast<int64_t>(in.size() / products.size());
    for (size_t i = 0; i < products.size(); ++i) {
      products[i].in = in.data() + i * chunks;
      products[i].chunks = chunks;
    }
    return products;
  }

  template <class MakeRow>
  static void run_rows(const std::vector<Products>& products, float* scratch,
                       const MakeRow& make_row) {
    std::vector<decltype(make_row(products[0], 0))> rows;
    rows.reserve(products.size());
    for (const Products& p : products)
      rows.push_back(make_row(p, static_cast<int64_t>(rows.size())));
    amx::run(rows.data(), static_cast<int64_t>(rows.size()), scratch);
  }

  FeatureRow feature_row(const Layer& layer, const Products& p, int64_t y) const {
    const Rows& rows = rows_of(layer);
    FeatureRow r{
        p, layer.activation, {}, rows.at(y, 0), both_, layer.gate_weights, layer.gate_bias};
    if (layer.activation >= Activation::gate_sigmoid) {
      const Rows& other = rings_[layer.other];
      r.other = other.at(y, rows.columns.first - other.columns.first);
    }
    return r;
  }

  ImageRow image_row(const Layer& layer, const Products& p, int64_t y, Range* range) const {
    ImageRow r{p, images_.output, 1, range};
    while (3 * r.scale * r.scale < layer.outputs) ++r.scale;
    r.image.data = r.image.at(r.scale * y, r.scale * rows_of(layer).columns.first);
    return r;
  }

  // The head reads both halves of the image in either form: bf16 alone would keep 8 bits.
  void read_from_image(const Layer& layer, int64_t row, std::vector<Halves>& in,
                       const float* scratch, Products& p) const {
    char* halves = reinterpret_cast<char*>(const_cast<float*>(scratch));
    const HeadRows head = head_rows(layer, rows_of(layer).columns, 0);
    for (int64_t i = 0; i < layer.kernel; ++i)
      for (int64_t k = 0; k < 3 * layer.kernel; k += kChunk)
        in.push_back({halves + (row + i) * 2 * head.half() + 2 * k, 3 * 2, head.half()});
    p.three = true;
  }

  void read_from_layers(const Layer& layer, const Rows& rows, int64_t y, std::vector<Halves>& in,
                        Products& p) const {
    const int64_t reach = layer.reach();
    for (int64_t i = y - reach; i <= y + reach; ++i) {
      if (layer.kind == Layer::depthwise) read_row(rings_[layer.other], rows, i, reach, in);
      read_row(rings_[layer.input], rows, i, reach, in);
    }
    if (plan_.layers()[layer.input].kind == Layer::image) p.three = true;
    if (layer.adds()) {
      const Rows& other = rings_[layer.other];
      p.init = other.sums(y, rows.columns.first - other.columns.first);
      p.init_plane = other.sums_plane();
      p.init_step = kOutputs;
    }
  }

  // The chunks of one row of a kernel that reaches `reach` pixels to each side.
  void read_row(const Rows& from, const Rows& rows, int64_t y, int64_t reach,
                std::vector<Halves>& in) const {
    const int64_t left = rows.columns.first - from.columns.first - reach;
    const bool inside = y >= 0 && y < plan_.height();
    char* at = inside ? from.at(y, left).data : zeros_;
    for (int64_t k = 0; k < (1 + 2 * reach) * from.step; k += 2 * kChunk)
      in.push_back({at + k, from.step, from.low()});
  }

  const Plan& plan_;
  bool both_;
  const Images& images_;
  char* zeros_;
  std::vector<Rows> rings_;
};

}  // namespace

AmxStream::AmxStream(const Layers& layers, int64_t height, int64_t width)
    : plan_(layers, height, width, kVector),
      both_(layers.form() == Form::bfloat16x3),
      threads_(threads_for(height)) {
  int64_t floats = 0;
  for (int64_t i = 0; i < plan_.strips(); ++i)
    floats = std::max(floats, plan_.ring_floats(i) + threads_ * AmxStrip::scratch_size(plan_, i));
  workspace_ = take_workspace(floats + AmxStrip::slack(plan_));
}

Range AmxStream::run(const Images& images) const {
  return run_strips(plan_, threads_, [&](int64_t i) {
    const int64_t scratch_size = AmxStrip::scratch_size(plan_, i);
    float* scratch = workspace_.get();
    const AmxStrip strip(plan_, both_, i, images, scratch + threads_ * scratch_size);
    return [=](int64_t thread, const Task& task, Range* range) {
      strip.run(task, scratch + thread * scratch_size, range);
    };
  });
}

}  // namespace espan::cpu
