// What the kernels of the layers are told: pointers and sizes, no tensors.
//
// A row of a feature map holds its channels in groups of one vector: [group][pixel][lane], `plane`
// floats from group to group.  So a pixel's neighbour in a row is always kLanes floats away.
#pragma once

#include <cstdint>

namespace espan::cpu {

enum class Activation { none, silu, gate, add };

// The type of an image's values.
enum class Element { uint8, float32 };

inline int64_t size_of(Element e) { return e == Element::uint8 ? 1 : 4; }

// One row of 4x4 tiles of a 3x3 convolution, by Winograd's F(4x4, 3x3).
struct ConvRow {
  const float* in[6];  // from one pixel left of the first tile on; zeros beyond the image
  int64_t in_plane;
  const float* other[4];  // what the gate or the addition takes, from the first tile on, or null
  int64_t other_plane;
  float* out[4];  // from the first tile on
  int64_t out_plane;
  int64_t tiles;
  int64_t inputs, outputs;  // channels
  const float* weights;     // [36][inputs][weight_stride]
  const float* bias;
  int64_t weight_stride;
  Activation activation;
  float* scratch;  // network_scratch() floats
};

// One row of a convolution of the image, or of a 1x1 convolution.
struct ProductRow {
  const float* in;
  int64_t in_pitch;   // floats between the parts that are summed: image rows, or channel groups
  int64_t parts;      // how many
  int64_t depth;      // products in all parts together
  const float* init;  // what the sum starts with: `pixels` vectors, or one (init_step 0)
  int64_t init_plane, init_step;
  float* out;
  int64_t out_plane;
  int64_t pixels, outputs;
  const float* weights;  // [depth][weight_stride]
  int64_t weight_stride;
};

// What is told about the output before it is clamped.
struct Range {
  float low, high;
  float finite;  // 0, or NaN once a value was infinite or not a number
};

// An image: element (y, x, c) lies y * row + x * column + c * channel elements from the first.
struct Pixels {
  void* data;
  int64_t row, column, channel;
  Element type;

  // From the pixel (y, x) on.
  void* at(int64_t y, int64_t x) const { return moved(y * row + x * column).data; }
  Pixels moved(int64_t elements) const {
    return {static_cast<char*>(data) + elements * size_of(type), row, column, channel, type};
  }
};

// One image of a batch: what a head reads, what an upsample writes, and the RGB mean that the head
// subtracts.
struct Images {
  Pixels input, output;
  const float* mean;
};

// A row of tiles of the last convolution, put into the image.  Its outputs are in the order
// (dy, dx, colour), and what pads them repeats the first, so as not to widen the range.
struct UpsampleRow {
  ConvRow conv;           // `out` is not used
  Pixels image;           // of the first pixel
  int64_t rows, columns;  // low-resolution pixels that lie in the image
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
