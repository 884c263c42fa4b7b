// Arguments of the layers' kernels: pointers and sizes, no tensors.
//
// A row of a feature map holds its channels in groups of one vector, [group][pixel][lane], with
// `plane` floats from group to group.  So neighbouring pixels are always kLanes floats apart.
#pragma once

#include <cstdint>

namespace espan::cpu {

// What follows the sums o of a layer: a function of o; o plus the other operand; or a gate, for the
// other operand x: (x + o) (sigmoid(o) - 1/2), (x + o) g or (x + o) tanh(g), where g is a 1x1
// convolution of o.
enum class Activation { none, silu, relu, mish, add, gate_sigmoid, gate_linear, gate_tanh };

inline bool has_gate_conv(Activation a) {
  return a == Activation::gate_linear || a == Activation::gate_tanh;
}

// The type of an image's values.
enum class Element { uint8, float32 };

inline int64_t size_of(Element e) { return e == Element::uint8 ? 1 : 4; }

// A row of 4x4 tiles of a 3x3 convolution, by Winograd's F(4x4, 3x3).  With `bfloat16`, the
// transformed inputs are rounded and multiplied in pairs of channels, and so are the weights:
// [36][ceil(inputs / 2)][weight_stride][2].
struct ConvRow {
  const float* in[6];  // starts one pixel left of the first tile; zeros outside the image
  int64_t in_plane;
  const float* other[4];  // second operand of the gate or addition, at the first tile, or null
  int64_t other_plane;
  float* out[4];  // at the first tile
  int64_t out_plane;
  int64_t tiles;
  int64_t inputs, outputs;  // channels
  const float* weights;     // [36][inputs][weight_stride]
  bool bfloat16;
  const float* bias;
  int64_t weight_stride;
  Activation activation;
  const float *gate_weights, *gate_bias;  // [outputs][weight_stride], of the gate's convolution
  float* scratch;                         // network_scratch() floats
};

// The number of groups of three rows of a head's kernel.  Rows of zeros fill the last group.
inline int64_t head_parts(int64_t kernel) { return (kernel + 2) / 3; }

// Four rows of a convolution of the image.
struct HeadRow {
  const float* in;   // 3 head_parts() + 3 rows of interleaved pixels; up to 15 floats more are read
  int64_t in_pitch;  // floats from row to row
  int64_t kernel;
  float* out[4];
  int64_t out_plane;
  int64_t pixels, outputs;
  const float* weights;  // [6][head_parts()][3 kernel][weight_stride]
  const float* bias;
  int64_t weight_stride;
  Activation activation;
  float* scratch;  // head_scratch() floats
};

// A row of a 1x1 convolution.
struct ProductRow {
  const float* in;
  int64_t in_pitch;   // floats from channel group to channel group
  int64_t depth;      // input channels
  const float* init;  // initial sums: `pixels` vectors, or one if init_step is 0
  int64_t init_plane, init_step;
  float* out;
  int64_t out_plane;
  int64_t pixels, outputs;
  const float* weights;  // [depth][weight_stride]
  int64_t weight_stride;
};

// The range of the output before it is clamped.
struct Range {
  float low, high;
  float finite;  // 0, or NaN if a value was infinite or NaN
};

// An image.  Element (y, x, c) is y * row + x * column + c * channel elements after the first.
struct Pixels {
  void* data;
  int64_t row, column, channel;
  Element type;

  // The pixel (y, x).
  void* at(int64_t y, int64_t x) const { return moved(y * row + x * column).data; }
  Pixels moved(int64_t elements) const {
    return {static_cast<char*>(data) + elements * size_of(type), row, column, channel, type};
  }
};

// One image of a batch: the input of height x width pixels, of which unshuffle x unshuffle are a
// pixel of the network's layers; the output; and the RGB mean that is subtracted.
struct Images {
  Pixels input, output;
  const float* mean;
  int64_t height, width, unshuffle;
};

// A row of tiles of the last convolution, written to the image.  Its outputs are in the order
// (dy, dx, colour), and padding repeats the first output so as not to widen the range.
struct UpsampleRow {
  ConvRow conv;           // `out` is not used
  Pixels image;           // at the first pixel
  int64_t rows, columns;  // low-resolution pixels inside the image
  int64_t scale;
  Range* range;
};

// Rows of the last layer for the concat of two feature maps: a depthwise 3x3, then a 1x1 that is
// written to the image as by UpsampleRow.  The channels of the first map fill whole vectors.
struct DepthwiseRow {
  // For each of the two maps: the rows y - 1 to y + 4, starting one pixel left of the first column.
  struct Map {
    const float* in[6];
    int64_t plane, channels;
  } maps[2];
  const float* weights;  // [9][channels_stride]
  int64_t channels_stride;
  ProductRow product;     // the 1x1, whose input is in `scratch`
  Pixels image;           // at the first pixel
  int64_t rows, columns;  // low-resolution pixels inside the image
  int64_t scale;
  Range* range;
  float* scratch;  // depthwise_scratch() floats
};

// The kernels of one instruction set.
struct NetworkKernels {
  int64_t lanes;
  int64_t (*scratch)(int64_t inputs, int64_t outputs);  // floats, for ConvRow and UpsampleRow
  int64_t (*head_scratch)(int64_t kernel, int64_t outputs);
  int64_t (*depthwise_scratch)(int64_t inputs, int64_t outputs);
  void (*conv)(const ConvRow&);
  void (*head)(const HeadRow&);
  void (*pointwise)(const ProductRow&);
  void (*upsample)(const UpsampleRow&);
  void (*depthwise)(const DepthwiseRow&);
};

// The kernels that can compute a ConvRow in bf16; only for processors with avx512_bf16.
NetworkKernels bfloat16_kernels();

}  // namespace espan::cpu
