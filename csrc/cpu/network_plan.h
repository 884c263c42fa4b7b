// A network as a list of layers, and how much of each layer's output is kept.
//
// Layers stream: a layer computes a group of rows as soon as its input rows are available, and
// keeps its latest rows in a ring until all readers have used them.  A layer's groups start one
// unit (see unit_of) above those of its input, so that it reads rows that were just written.  An
// image too wide for its rings to fit into ring_bytes is cut into strips of columns.
#pragma once

#include <cstdint>
#include <vector>

#include "network_tasks.h"

namespace espan::cpu {

struct Layer {
  // `image` and `head`, a convolution, read the input image; `upsample`, a 3x3 convolution, and
  // `depthwise`, a depthwise 3x3 of `other` and `input` and a 1x1, write the output image.
  enum Kind { image, head, conv, pointwise, upsample, depthwise } kind;
  int input;  // the layer it reads, or -1
  int other;  // the layer it adds or gates with, or -1
  Activation activation;
  int64_t inputs, outputs;
  int64_t kernel;  // the width of a head
  const float *weights, *bias;
  int64_t weight_stride;
  bool bfloat16;                          // whether its weights are transformed and in bf16
  const float *gate_weights, *gate_bias;  // of the gate's convolution

  // Derived by Plan: how many rows it lags behind the head, how many pixels it computes beyond each
  // side of the strip, how many rows it keeps, and which layers read them.
  int64_t lag = 0, margin = 0, ring = 0;
  std::vector<int> readers;

  // Pixels read beyond each side of the output: one for a 3x3, of which only the input is read so.
  int64_t reach() const { return kind == conv || kind == upsample || kind == depthwise; }
  int64_t reach_from(int source) const {
    return kind == depthwise || source == input ? reach() : 0;
  }
  // Whether its sums start from those of `other`.
  bool adds() const { return other >= 0 && (kind == pointwise || activation == Activation::add); }
  bool reads_image() const { return kind == image || kind == head; }
  bool writes_image() const { return kind == upsample || kind == depthwise; }
};

// How weights are packed: transformed for Winograd's convolution, in fp32, or with the 3x3s in
// bf16; or in bf16 tiles for the matrix unit, either rounded or as two halves.  What reads the
// image is always in fp32, or has both halves.
enum class Form { winograd, winograd_bfloat16, bfloat16, bfloat16x3 };

inline bool by_winograd(Form form) {
  return form == Form::winograd || form == Form::winograd_bfloat16;
}

// The side of the square of pixels that a layer computes at once.  Rows and strips start at
// multiples of it, so that results are bit-identical for any partition: the rounding of a Winograd
// tile depends on all 36 pixels that it reads, while the matrix unit sums every pixel in the same
// order.
inline int64_t unit_of(Form form) { return by_winograd(form) ? 4 : 1; }

// Layers in order.  Their weights are contiguous: for each layer its rows or tiles, then its bias,
// and the same for the gate's convolution, every row padded to vectors.
class Layers {
 public:
  // `weights` may be null if only size() is needed.
  explicit Layers(const float* weights, Form form = Form::winograd)
      : weights_(weights), form_(form) {}

  // Adds a layer; its weights follow those of the layers before it.
  void add(Layer layer);

  int64_t size() const { return size_; }  // floats of weights
  Form form() const { return form_; }
  const std::vector<Layer>& all() const { return layers_; }

 private:
  bool of_image(const Layer& layer) const;
  // The floats of a layer's weights, without its bias.
  int64_t weights_of(const Layer& layer) const;
  int64_t gate_weights_of(const Layer& layer) const;
  const float* take(int64_t floats);

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
  int64_t group_rows() const { return group_rows_; }  // the most rows of a group
  int64_t strips() const { return strips_; }
  int64_t height() const { return height_; }
  int64_t width() const { return width_; }

  // A group ends before the first row of the next one.
  int64_t first_row(const Layer& layer, int64_t group) const;

  // The columns of a strip that a layer computes: [first, first + count), in whole units like rows.
  struct Columns {
    int64_t first, count;
  };
  Columns columns(int64_t strip, const Layer& layer) const;

  // Floats of a row of one channel group, of a row, of the longest row, and of all rings plus a row
  // of zeros.
  int64_t plane(int64_t strip, const Layer& layer) const;
  int64_t row_size(int64_t strip, const Layer& layer) const;
  int64_t longest_row(int64_t strip) const;
  int64_t ring_floats(int64_t strip) const;

 private:
  void add(Layer layer);
  void delay_heads();
  void set_rings();
  int64_t units(int64_t pixels) const { return (pixels + unit_ - 1) / unit_; }

  std::vector<Layer> layers_;
  int64_t height_, width_, lanes_, unit_, groups_ = 0, strips_ = 1;
  int64_t group_rows_ = 4;  // the minimum: with 1, 12 rows took 15% longer on the matrix unit
};

}  // namespace espan::cpu
