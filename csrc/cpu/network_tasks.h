// Arguments of the layers' kernels: pointers and sizes, no tensors.
//
// A row of a feature map holds its channels in groups of one vector, [group][pixel][lane], with
// `plane` floats from group to group.  So neighbouring pixels are always kLanes floats apart.
#pragma once

#include <cstdint>

namespace espan::cpu {

enum class Activation { none, silu, gate, add };

// The type of an image's values.
enum class Element { uint8, float32 };

inline int64_t size_of(Element e) { return e == Element::uint8 ? 1 : 4; }

// A row of 4x4 tiles of a 3x3 convolution, by Winograd's F(4x4, 3x3).
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
  const float* bias;
  int64_t weight_stride;
  Activation activation;
  float* scratch;  // network_scratch() floats
};

// A row of a convolution of the image, or of a 1x1 convolution.
struct ProductRow {
  const float* in;
  int64_t in_pitch;   // floats between the summed parts: image rows, or channel groups
  int64_t parts;      // number of parts
  int64_t depth;      // products of all parts
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

// One image of a batch: the head's input, the upsample layer's output, and the RGB mean that the
// head subtracts.
struct Images {
  Pixels input, output;
  const float* mean;
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

// The kernels of one instruction set.
struct NetworkKernels {
  int64_t lanes;
  int64_t (*scratch)(int64_t inputs, int64_t outputs);  // floats, for ConvRow and UpsampleRow
  void (*conv)(const ConvRow&);
  void (*head)(const ProductRow&);       // in: pixels of three floats
  void (*pointwise)(const ProductRow&);  // in: a feature map
  void (*upsample)(const UpsampleRow&);
};

}  // namespace espan::cpu
