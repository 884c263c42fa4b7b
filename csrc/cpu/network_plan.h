// A network as a list of layers, and how much of each layer's output is kept.
//
// Layers stream: a layer computes a group of rows as soon as the rows that it reads are there, and
// keeps a ring of its latest rows until all that read them have done so.  A layer's groups begin
// one unit (of Form) above those of the layer that it reads, so that it reads what was just
// written.  An image too wide for the rings to fit into ring_bytes is cut into strips of columns.
#pragma once

#include <cstdint>
#include <vector>

#include "network_tasks.h"

namespace espan::cpu {

struct Layer {
  // `head` reads the input image, `upsample` writes the output image.
  enum Kind { head, conv, pointwise, upsample } kind;
  int input;  // the layer whose output it reads, or -1 for a head
  int other;  // the layer that is added or gated with, or -1
  Activation activation;
  int64_t inputs, outputs;
  const float *weights, *bias;
  int64_t weight_stride;
  int64_t kernel = 0;  // the width of a head

  // Derived: how many rows it runs behind the head, how many pixels more than the strip it computes
  // on each side, how many rows are kept, who reads them.
  int64_t lag = 0, margin = 0, ring = 0;
  std::vector<int> readers;

  // A 3x3 convolution reads one pixel more on each side.
  int64_t reach() const { return kind == conv || kind == upsample; }
};

// How weights are packed: transformed for Winograd's convolution, in fp32; or, for the matrix unit,
// in tiles of bf16: rounded, or in two halves, of which a head's always are.
enum class Form { winograd, bfloat16, bfloat16x3 };

// The side of the squares of pixels that a layer computes at once, which alone are the same to the
// last bit wherever rows and strips begin: in a tile of Winograd's rounding depends on all 36
// pixels that it reads, on the matrix unit a pixel's sums are made in one order wherever it lies.
inline int64_t unit_of(Form form) { return form == Form::winograd ? 4 : 1; }

// Layers in order, with weights that follow each other: of each its rows or tiles, then its bias,
// every row padded to vectors.  A layer's index is its place; the functions return it.
class Layers {
 public:
  // `weights` may be null: then only size() counts.
  explicit Layers(const float* weights, Form form = Form::winograd)
      : weights_(weights), form_(form) {}

  int head(int64_t channels, int64_t kernel);
  int conv(int64_t channels, int input, Activation activation, int other = -1);
  int pointwise(int64_t channels, int input, int other);
  int upsample(int64_t channels, int64_t scale, int input);

  int64_t size() const { return size_; }  // floats of weights
  Form form() const { return form_; }
  const std::vector<Layer>& all() const { return layers_; }

 private:
  int add(Layer layer, int64_t rows, int64_t chunks);

  const float* weights_;
  Form form_;
  int64_t size_ = 0;
  std::vector<Layer> layers_;
};

class Plan {
 public:
  Plan(const Layers& layers, int64_t height, int64_t width, int64_t lanes);

  const std::vector<Layer>& layers() const { return layers_; }
  int64_t groups() const { return groups_; }
  int64_t strips() const { return strips_; }
  int64_t height() const { return height_; }
  int64_t width() const { return width_; }

  // A layer's group has the rows from its first to before the next one's first.
  int64_t first_row(const Layer& layer, int64_t group) const;

  // The columns of a strip that a layer computes: [first, first + count), whole units as the rows.
  struct Columns {
    int64_t first, count;
  };
  Columns columns(int64_t strip, const Layer& layer) const;

  // In floats: a row of one channel group, a row, the longest row, all rings and a row of zeros.
  int64_t plane(int64_t strip, const Layer& layer) const;
  int64_t row_size(int64_t strip, const Layer& layer) const;
  int64_t longest_row(int64_t strip) const;
  int64_t ring_floats(int64_t strip) const;

 private:
  void add(Layer layer);
  void set_rings();
  int64_t units(int64_t pixels) const { return (pixels + unit_ - 1) / unit_; }

  std::vector<Layer> layers_;
  int64_t height_, width_, lanes_, unit_, groups_ = 0, strips_ = 1;
  int64_t group_rows_ = 4;  // at least: with 1 on the matrix unit 12 rows took 15% longer
};

}  // namespace espan::cpu
