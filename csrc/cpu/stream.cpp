#include "stream.h"

#include <algorithm>
#include <cstring>

#include "image_rows.h"
#include "run_strips.h"

#define ESPAN_KERNEL "network_kernel.h"
#include "for_each_isa.h"

namespace espan::cpu {
namespace {

NetworkKernels kernels_for(Form form) {
  if (form == Form::winograd_bfloat16) return bfloat16_kernels();
  NetworkKernels kernels;
  ESPAN_ON_ISA(network_kernels(&kernels));
  return kernels;
}

// The state shared by the tasks of one strip of one image.
class Strip {
 public:
  Strip(const Plan& plan, const NetworkKernels& kernels, int64_t strip, const Images& images,
        float* memory)
      : plan_(plan), kernels_(kernels), images_(images) {
    zeros_ = memory;
    memory += plan.longest_row(strip);
    std::memset(zeros_, 0, plan.longest_row(strip) * sizeof(float));
    for (const Layer& layer : plan.layers()) {
      Rows rows{memory, plan.row_size(strip, layer), plan.plane(strip, layer), layer.ring,
                plan.columns(strip, layer)};
      rings_.push_back(rows);
      memory += rows.size * rows.ring;
      clear_borders(rows);
    }
  }

  void run(const Task& task, float* scratch, Range* range) const {
    const Layer& layer = plan_.layers()[task.layer];
    const int64_t end = plan_.first_row(layer, task.group + 1);
    for (int64_t y = plan_.first_row(layer, task.group); y < end; y += 4)
      run_row(layer, rings_[task.layer], y, scratch, range);
  }

  // Floats of scratch memory per thread.
  static int64_t scratch_size(const Plan& plan, const NetworkKernels& kernels, int64_t strip) {
    int64_t floats = 0;
    for (const Layer& layer : plan.layers()) {
      const int64_t width = plan.columns(strip, layer).count + layer.kernel;
      int64_t needed = 0;
      if (layer.kind == Layer::image) needed = width * layer.outputs;
      if (layer.kind == Layer::head)
        needed = head_image(layer, width) + kernels.head_scratch(layer.kernel, layer.outputs);
      if (layer.kind == Layer::conv || layer.kind == Layer::upsample)
        needed = kernels.scratch(layer.inputs, layer.outputs);
      if (layer.kind == Layer::depthwise)
        needed = kernels.depthwise_scratch(layer.inputs, layer.outputs);
      floats = std::max(floats, needed);
    }
    return floats;
  }

 private:
  // Floats of the rows of the image that a head reads for four rows.
  static int64_t head_image(const Layer& layer, int64_t pixels) {
    return (3 * head_parts(layer.kernel) + 3) * 3 * pixels + 15;
  }

  // A layer's latest `ring` rows, starting one pixel left of the first column.
  struct Rows {
    float* data;
    int64_t size, plane, ring;
    Plan::Columns columns;

    // Row y, starting `offset` pixels from the first column.
    float* at(int64_t y, int64_t offset, int64_t lanes) const {
      return data + y % ring * size + (offset + 1) * lanes;
    }
  };

  void clear_borders(const Rows& rows) const {
    const int64_t lanes = kernels_.lanes;
    for (int64_t y = 0; y < rows.ring; ++y)
      for (int64_t at = 0; at < rows.size; at += rows.plane) {
        float* row = rows.data + y * rows.size + at;
        std::memset(row, 0, lanes * sizeof(float));
        std::memset(row + rows.plane - lanes, 0, lanes * sizeof(float));
      }
  }

  // Layers read the pixels right of the image as zeros.
  void clear_beyond(const Rows& rows, int64_t y) const {
    const int64_t inside = plan_.width() - rows.columns.first, all = rows.columns.count;
    if (inside >= all) return;
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t at = 0; at < rows.size; at += rows.plane)
        std::memset(rows.at(y + i, inside, kernels_.lanes) + at, 0,
                    (all - inside) * kernels_.lanes * sizeof(float));
  }

  void run_row(const Layer& layer, const Rows& rows, int64_t y, float* scratch,
               Range* range) const {
    switch (layer.kind) {
      case Layer::image:
        run_image(rows, y, scratch);
        break;
      case Layer::head:
        run_head(layer, rows, y, scratch);
        break;
      case Layer::pointwise:
        run_pointwise(layer, rows, y);
        break;
      case Layer::conv:
        kernels_.conv(conv_row(layer, rows, y, scratch));
        break;
      case Layer::upsample:
        return run_upsample(layer, rows, y, scratch, range);
      case Layer::depthwise:
        return run_depthwise(layer, rows, y, scratch, range);
    }
    clear_beyond(rows, y);
  }

  // The rows that a 3x3 reads for the rows y to y + 3, starting one pixel left of the first column.
  void rows_around(const Rows& rows, const Rows& in, int64_t y, const float** to) const {
    for (int64_t i = 0; i < 6; ++i) {
      const int64_t from = y - 1 + i;
      const bool inside = from >= 0 && from < plan_.height();
      const int64_t left = rows.columns.first - in.columns.first - 1;
      to[i] = inside ? in.at(from, left, kernels_.lanes) : zeros_;
    }
  }

  ConvRow conv_row(const Layer& layer, const Rows& rows, int64_t y, float* scratch) const {
    const int64_t lanes = kernels_.lanes;
    const Rows& in = rings_[layer.input];
    ConvRow c{};
    rows_around(rows, in, y, c.in);
    c.in_plane = in.plane;
    const Rows& other = layer.other < 0 ? in : rings_[layer.other];
    for (int64_t i = 0; i < 4; ++i) {
      c.other[i] = other.at(y + i, rows.columns.first - other.columns.first, lanes);
      c.out[i] = rows.ring ? rows.at(y + i, 0, lanes) : nullptr;
    }
    c.other_plane = other.plane;
    c.out_plane = rows.plane;
    c.tiles = rows.columns.count / 4;
    c.inputs = layer.inputs;
    c.outputs = layer.outputs;
    c.weights = layer.weights;
    c.bfloat16 = layer.bfloat16;
    c.bias = layer.bias;
    c.weight_stride = layer.weight_stride;
    c.activation = layer.activation;
    c.gate_weights = layer.gate_weights;
    c.gate_bias = layer.gate_bias;
    c.scratch = scratch;
    return c;
  }

  ProductRow product_row(const Layer& layer, const Rows& rows) const {
    ProductRow r{};
    r.init = layer.bias;
    r.init_plane = kernels_.lanes;
    r.out_plane = rows.plane;
    r.pixels = rows.columns.count;
    r.outputs = layer.outputs;
    r.weights = layer.weights;
    r.weight_stride = layer.weight_stride;
    return r;
  }

  void run_image(const Rows& rows, int64_t y, float* scratch) const {
    const int64_t lanes = kernels_.lanes, values = values_of_pixel(images_);
    for (int64_t i = 0; i < 4; ++i) {
      read_image_rows(images_, y + i, 1, rows.columns.first, rows.columns.count, scratch);
      for (int64_t c = 0; c < values; c += lanes) {
        float* to = rows.at(y + i, 0, lanes) + c / lanes * rows.plane;
        const int64_t some = std::min(lanes, values - c);
        for (int64_t x = 0; x < rows.columns.count; ++x, to += lanes) {
          std::copy_n(scratch + x * values + c, some, to);
          std::fill(to + some, to + lanes, 0.0f);
        }
      }
    }
  }

  void run_head(const Layer& layer, const Rows& rows, int64_t y, float* scratch) const {
    const int64_t radius = layer.kernel / 2, pixels = rows.columns.count + 2 * radius;
    read_image_rows(images_, y - radius, 3 * head_parts(layer.kernel) + 3,
                    rows.columns.first - radius, pixels, scratch);
    HeadRow h{};
    h.in = scratch;
    h.in_pitch = 3 * pixels;
    h.kernel = layer.kernel;
    for (int64_t i = 0; i < 4; ++i) h.out[i] = rows.at(y + i, 0, kernels_.lanes);
    h.out_plane = rows.plane;
    h.pixels = rows.columns.count;
    h.outputs = layer.outputs;
    h.weights = layer.weights;
    h.bias = layer.bias;
    h.weight_stride = layer.weight_stride;
    h.activation = layer.activation;
    h.scratch = scratch + head_image(layer, pixels);
    kernels_.head(h);
  }

  void run_pointwise(const Layer& layer, const Rows& rows, int64_t y) const {
    const int64_t lanes = kernels_.lanes;
    const Rows& in = rings_[layer.input];
    ProductRow r = product_row(layer, rows);
    r.in_pitch = in.plane;
    r.depth = layer.inputs;
    for (int64_t i = 0; i < 4; ++i) {
      r.in = in.at(y + i, rows.columns.first - in.columns.first, lanes);
      r.out = rows.at(y + i, 0, lanes);
      if (layer.other >= 0) {
        const Rows& other = rings_[layer.other];
        r.init = other.at(y + i, rows.columns.first - other.columns.first, lanes);
        r.init_plane = other.plane;
        r.init_step = lanes;
      }
      kernels_.pointwise(r);
    }
  }

  void run_upsample(const Layer& layer, const Rows& rows, int64_t y, float* scratch,
                    Range* range) const {
    UpsampleRow u{conv_row(layer, rows, y, scratch)};
    write_to_image(layer, rows, y, range, u);
    kernels_.upsample(u);
  }

  void run_depthwise(const Layer& layer, const Rows& rows, int64_t y, float* scratch,
                     Range* range) const {
    DepthwiseRow d{};
    for (int i = 0; i < 2; ++i) {
      const int source = i == 0 ? layer.other : layer.input;
      rows_around(rows, rings_[source], y, d.maps[i].in);
      d.maps[i].plane = rings_[source].plane;
      d.maps[i].channels = plan_.layers()[source].outputs;
    }
    d.product = product_row(layer, rows);
    d.product.depth = layer.inputs;
    d.weights = layer.weights;
    d.channels_stride = (layer.inputs + 15) / 16 * 16;
    d.product.weights += 9 * d.channels_stride;
    d.scratch = scratch;
    write_to_image(layer, rows, y, range, d);
    kernels_.depthwise(d);
  }

  // Where a row of the last layer goes.
  template <class Row>
  void write_to_image(const Layer& layer, const Rows& rows, int64_t y, Range* range,
                      Row& row) const {
    const int64_t x = rows.columns.first;
    row.rows = std::min<int64_t>(plan_.height() - y, 4);
    row.columns = std::min(plan_.width() - x, rows.columns.count);
    for (row.scale = 1; 3 * row.scale * row.scale < layer.outputs;) ++row.scale;
    row.image = images_.output;
    row.image.data = images_.output.at(row.scale * y, row.scale * x);
    row.range = range;
  }

  const Plan& plan_;
  const NetworkKernels& kernels_;
  const Images& images_;
  float* zeros_;
  std::vector<Rows> rings_;
};

}  // namespace

Stream::Stream(const Layers& layers, int64_t height, int64_t width)
    : kernels_(kernels_for(layers.form())),
      plan_(layers, height, width, kernels_.lanes),
      threads_(threads_for(height)) {
  int64_t floats = 0;
  for (int64_t i = 0; i < plan_.strips(); ++i)
    floats =
        std::max(floats, plan_.ring_floats(i) + threads_ * Strip::scratch_size(plan_, kernels_, i));
  workspace_ = take_workspace(floats);
}

Range Stream::run(const Images& images) const {
  return run_strips(plan_, threads_, [&](int64_t i) {
    const int64_t scratch_size = Strip::scratch_size(plan_, kernels_, i);
    float* scratch = workspace_.get();
    const Strip strip(plan_, kernels_, i, images, scratch + threads_ * scratch_size);
    return [=](int64_t thread, const Task& task, Range* range) {
      strip.run(task, scratch + thread * scratch_size, range);
    };
  });
}

}  // namespace espan::cpu
