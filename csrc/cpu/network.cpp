// The whole network on the CPU: checks, threads, and the tasks that the schedule hands out.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <tuple>
#include <vector>

#include "network_plan.h"
#include "network_tasks.h"
#include "schedule.h"
#include "workspace.h"

#define ESPAN_KERNEL "network_kernel.h"
#include "for_each_isa.h"

namespace espan::cpu {
namespace {

constexpr const char* kOp = "espan::network";

// The image as the head reads it: (y, x, c) lies at data + y * row + x * column + c * channel.
struct Source {
  const void* data;
  int64_t row, column, channel;
  bool bytes;
  const float* mean;
};

// A value of the image minus the mean, as PyTorch computes it from x / 255.
struct FromBytes {
  float table[3][256];
  explicit FromBytes(const float* mean) {
    for (int c = 0; c < 3; ++c)
      for (int v = 0; v < 256; ++v) table[c][v] = static_cast<float>(v) / 255.0f - mean[c];
  }
  float operator()(uint8_t v, int c) const { return table[c][v]; }
};

struct FromFloats {
  float mean[3];
  explicit FromFloats(const float* m) : mean{m[0], m[1], m[2]} {}
  float operator()(float v, int c) const { return v - mean[c]; }
};

template <class T, class Convert>
void read_row(const T* row, const Source& s, const Convert& convert, int64_t begin, int64_t end,
              float* out) {
  for (int64_t x = begin; x < end; ++x, out += 3)
    for (int c = 0; c < 3; ++c) out[c] = convert(row[x * s.column + c * s.channel], c);
}

// Everything that the tasks of one strip of one image share.
class Strip {
 public:
  Strip(const Plan& plan, const NetworkKernels& kernels, int64_t strip, const Source& source,
        const Pixels& target, float* memory)
      : plan_(plan), kernels_(kernels), source_(source), target_(target) {
    zeros_ = memory;
    memory += plan.longest_row(strip);
    std::memset(zeros_, 0, plan.longest_row(strip) * sizeof(float));
    for (const Layer& layer : plan.layers()) {
      Rows rows{memory, plan.row_size(strip, layer), plan.plane(strip, layer), layer.ring,
                plan.tiles(strip, layer)};
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

  // Floats of scratch that a thread needs.
  static int64_t scratch_size(const Plan& plan, const NetworkKernels& kernels, int64_t strip) {
    const Layer &head = plan.layers().front(), &last = plan.layers().back();
    const int64_t kernel = head_kernel(head), width = 4 * plan.tiles(strip, head).count;
    return std::max((3 + kernel) * (width + kernel) * 3,
                    kernels.scratch(last.inputs, std::max(last.outputs, last.inputs)));
  }

 private:
  // A layer's output: its latest `ring` rows, from one pixel left of the first tile on.
  struct Rows {
    float* data;
    int64_t size, plane, ring;
    Plan::Tiles tiles;

    // Row y from the pixel `offset` from the first tile on.
    float* at(int64_t y, int64_t offset, int64_t lanes) const {
      return data + y % ring * size + (offset + 1) * lanes;
    }
  };

  static int64_t head_kernel(const Layer& head) {
    int64_t kernel = 1;
    const int64_t taps = (head.bias - head.weights) / head.weight_stride;
    while (3 * kernel * kernel < taps) ++kernel;
    return kernel;
  }

  void clear_borders(const Rows& rows) const {
    const int64_t lanes = kernels_.lanes;
    for (int64_t y = 0; y < rows.ring; ++y)
      for (int64_t at = 0; at < rows.size; at += rows.plane) {
        float* row = rows.data + y * rows.size + at;
        std::memset(row, 0, lanes * sizeof(float));
        std::memset(row + rows.plane - lanes, 0, lanes * sizeof(float));
      }
  }

  // Pixels right of the image are zeros to the layers that read them.
  void clear_beyond(const Rows& rows, int64_t y) const {
    const int64_t inside = plan_.width() - 4 * rows.tiles.first, all = 4 * rows.tiles.count;
    if (inside >= all) return;
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t at = 0; at < rows.size; at += rows.plane)
        std::memset(rows.at(y + i, inside, kernels_.lanes) + at, 0,
                    (all - inside) * kernels_.lanes * sizeof(float));
  }

  void run_row(const Layer& layer, const Rows& rows, int64_t y, float* scratch,
               Range* range) const {
    switch (layer.kind) {
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
    }
    clear_beyond(rows, y);
  }

  ConvRow conv_row(const Layer& layer, const Rows& rows, int64_t y, float* scratch) const {
    const int64_t lanes = kernels_.lanes;
    const Rows& in = rings_[layer.input];
    ConvRow c{};
    for (int64_t i = 0; i < 6; ++i) {
      const int64_t from = y - 1 + i;
      const bool inside = from >= 0 && from < plan_.height();
      const int64_t left = 4 * (rows.tiles.first - in.tiles.first) - 1;
      c.in[i] = inside ? in.at(from, left, lanes) : zeros_;
    }
    c.in_plane = in.plane;
    const Rows& other = layer.other < 0 ? in : rings_[layer.other];
    for (int64_t i = 0; i < 4; ++i) {
      c.other[i] = other.at(y + i, 4 * (rows.tiles.first - other.tiles.first), lanes);
      c.out[i] = rows.ring ? rows.at(y + i, 0, lanes) : nullptr;
    }
    c.other_plane = other.plane;
    c.out_plane = rows.plane;
    c.tiles = rows.tiles.count;
    c.inputs = layer.inputs;
    c.outputs = layer.outputs;
    c.weights = layer.weights;
    c.bias = layer.bias;
    c.weight_stride = layer.weight_stride;
    c.activation = layer.activation;
    c.scratch = scratch;
    return c;
  }

  ProductRow product_row(const Layer& layer, const Rows& rows) const {
    ProductRow r{};
    r.init = layer.bias;
    r.init_plane = kernels_.lanes;
    r.out_plane = rows.plane;
    r.pixels = 4 * rows.tiles.count;
    r.outputs = layer.outputs;
    r.weights = layer.weights;
    r.weight_stride = layer.weight_stride;
    return r;
  }

  void run_head(const Layer& layer, const Rows& rows, int64_t y, float* scratch) const {
    const int64_t kernel = head_kernel(layer), radius = kernel / 2;
    const int64_t left = 4 * rows.tiles.first - radius, pixels = 4 * rows.tiles.count + 2 * radius;
    ProductRow r = product_row(layer, rows);
    r.in_pitch = 3 * pixels;
    r.parts = kernel;
    r.depth = 3 * kernel * kernel;
    if (source_.bytes)
      read_rows<uint8_t>(FromBytes(source_.mean), y - radius, 3 + kernel, left, pixels, scratch);
    else
      read_rows<float>(FromFloats(source_.mean), y - radius, 3 + kernel, left, pixels, scratch);
    for (int64_t i = 0; i < 4; ++i) {
      r.in = scratch + i * r.in_pitch;
      r.out = rows.at(y + i, 0, kernels_.lanes);
      kernels_.head(r);
    }
  }

  template <class T, class Convert>
  void read_rows(const Convert& convert, int64_t first, int64_t count, int64_t left, int64_t pixels,
                 float* out) const {
    const int64_t begin = std::max<int64_t>(left, 0);
    const int64_t end = std::min(left + pixels, plan_.width());
    for (int64_t y = first; y < first + count; ++y, out += 3 * pixels) {
      const bool inside = y >= 0 && y < plan_.height();
      std::fill(out, out + (inside ? 3 * (begin - left) : 3 * pixels), 0.0f);
      if (!inside) continue;
      read_row(static_cast<const T*>(source_.data) + y * source_.row, source_, convert, begin, end,
               out + 3 * (begin - left));
      std::fill(out + 3 * (end - left), out + 3 * pixels, 0.0f);
    }
  }

  void run_pointwise(const Layer& layer, const Rows& rows, int64_t y) const {
    const int64_t lanes = kernels_.lanes;
    const Rows& in = rings_[layer.input];
    ProductRow r = product_row(layer, rows);
    r.in_pitch = in.plane;
    r.parts = in.size / in.plane;
    r.depth = layer.inputs;
    for (int64_t i = 0; i < 4; ++i) {
      r.in = in.at(y + i, 4 * (rows.tiles.first - in.tiles.first), lanes);
      r.out = rows.at(y + i, 0, lanes);
      if (layer.other >= 0) {
        const Rows& other = rings_[layer.other];
        r.init = other.at(y + i, 4 * (rows.tiles.first - other.tiles.first), lanes);
        r.init_plane = other.plane;
        r.init_step = lanes;
      }
      kernels_.pointwise(r);
    }
  }

  void run_upsample(const Layer& layer, const Rows& rows, int64_t y, float* scratch,
                    Range* range) const {
    UpsampleRow u{conv_row(layer, rows, y, scratch)};
    u.image = target_;
    u.rows = std::min<int64_t>(plan_.height() - y, 4);
    const int64_t x = 4 * rows.tiles.first;
    u.columns = std::min(plan_.width() - x, 4 * rows.tiles.count);
    for (u.scale = 1; 3 * u.scale * u.scale < layer.outputs;) ++u.scale;
    const int64_t offset = u.scale * (y * target_.row + x * target_.column);
    u.image.data = static_cast<char*>(target_.data) + offset * (target_.bytes ? 1 : sizeof(float));
    u.range = range;
    kernels_.upsample(u);
  }

  const Plan& plan_;
  const NetworkKernels& kernels_;
  Source source_;
  Pixels target_;
  float* zeros_;
  std::vector<Rows> rings_;
};

constexpr Range kNothing{std::numeric_limits<float>::infinity(),
                         -std::numeric_limits<float>::infinity(), 0};

void join(Range& all, const Range& part) {
  all.low = std::min(all.low, part.low);
  all.high = std::max(all.high, part.high);
  all.finite += part.finite;
}

Range run_image(const Plan& plan, const NetworkKernels& kernels, const Source& source,
                const Pixels& target, int64_t threads, const Workspace& workspace) {
  Range all = kNothing;
  std::mutex mutex;
  for (int64_t i = 0; i < plan.strips(); ++i) {
    const int64_t scratch_size = Strip::scratch_size(plan, kernels, i);
    float* scratch = workspace.memory.get();
    const Strip strip(plan, kernels, i, source, target, scratch + threads * scratch_size);
    Schedule schedule(plan);
    torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t) {
      Range range = kNothing;
      for (Task task = schedule.start(); task.layer >= 0; task = schedule.next(task))
        strip.run(task, scratch + begin * scratch_size, &range);
      const std::lock_guard<std::mutex> lock(mutex);
      join(all, range);
    });
  }
  return all;
}

void check(const Tensor& image, const Tensor& packed, const Description& d) {
  const ScalarType dtype = image.scalar_type();
  if (dtype != ScalarType::Byte && dtype != ScalarType::Float)
    fail(kOp, "image has dtype ", dtype_name(image), "; it must be uint8 or float32");
  if (image.dim() != 4 || image.size(1) != 3)
    fail(kOp, "image has shape ", shape_name(image), "; it must be [N, 3, H, W]");
  if (!packed.is_cpu()) fail(kOp, "packed is on ", device_name(packed), "; it must be on cpu");
  if (packed.scalar_type() != ScalarType::Float || packed.dim() != 1 || !packed.is_contiguous())
    fail(kOp, "packed is not what pack_network returns: one row of float32");
  if (d.channels < 1 || d.scale < 1 || d.head_kernel < 1 || d.head_kernel % 2 == 0)
    fail(kOp, "channels and scale must be at least 1, head_kernel odd; got ", d.channels, ", ",
         d.scale, ", ", d.head_kernel);
  if (d.convs.empty()) fail(kOp, "convs must have an entry for each block");
  for (int64_t n : d.convs)
    if (n != 2 && n != 3) fail(kOp, "convs must be 2 or 3 for each block; got ", n);
  if (packed.numel() != packed_size(d))
    fail(kOp, "packed has ", packed.numel(), " values; a network of this description has ",
         packed_size(d));
}

std::tuple<Tensor, Tensor> network(const Tensor& image, const Tensor& packed, int64_t channels,
                                   int64_t head_kernel, std::vector<int64_t> convs,
                                   bool concat_activation, int64_t scale) {
  const Description d{channels, head_kernel, std::move(convs), concat_activation, scale};
  check(image, packed, d);
  const int64_t n = image.size(0), height = image.size(2), width = image.size(3);
  const bool bytes = image.scalar_type() == ScalarType::Byte;
  // Bytes leave as images are stored, pixel by pixel; floats as tensors are, plane by plane.
  const auto layout = bytes ? torch::headeronly::MemoryFormat::ChannelsLast
                            : torch::headeronly::MemoryFormat::Contiguous;
  Tensor out = torch::stable::empty({n, 3, scale * height, scale * width}, image.scalar_type(),
                                    std::nullopt, std::nullopt, std::nullopt, layout);
  Tensor ranges = torch::stable::empty({n, 3}, ScalarType::Float);
  if (image.numel() == 0) return {out, torch::stable::fill_(ranges, 0.0)};

  NetworkKernels kernels;
  ESPAN_ON_ISA(network_kernels(&kernels));
  const float* weights = packed.const_data_ptr<float>();
  const Plan plan(d, weights, height, width, kernels.lanes);
  const int64_t threads = torch::stable::get_num_threads();
  int64_t floats = 0;
  for (int64_t i = 0; i < plan.strips(); ++i)
    floats =
        std::max(floats, plan.ring_floats(i) + threads * Strip::scratch_size(plan, kernels, i));
  Workspace workspace = take_workspace(floats);
  float* range = ranges.mutable_data_ptr<float>();
  const int64_t size = bytes ? 1 : sizeof(float);
  for (int64_t i = 0; i < n; ++i, range += 3) {
    const Source source{static_cast<const char*>(image.data_ptr()) + i * image.stride(0) * size,
                        image.stride(2),
                        image.stride(3),
                        image.stride(1),
                        bytes,
                        weights};
    const Pixels target{static_cast<char*>(out.data_ptr()) + i * out.stride(0) * size,
                        bytes ? 3 * scale * width : scale * width, bytes ? 3 : 1,
                        bytes ? 1 : scale * scale * height * width, bytes};
    const Range r = run_image(plan, kernels, source, target, threads, workspace);
    range[0] = r.low;
    range[1] = r.high;
    range[2] = r.finite == 0 ? 0 : 1;
  }
  return_workspace(std::move(workspace));
  return {out, ranges};
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) { m.impl("network", TORCH_BOX(&espan::cpu::network)); }
