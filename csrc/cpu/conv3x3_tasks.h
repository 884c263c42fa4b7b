// Arguments of conv3x3's kernels: pointers and sizes, no tensors.
#pragma once

#include <cstdint>

namespace espan::cpu {

// Images whose channels are adjacent; strides in floats.
template <class T>
struct Maps {
  T* data;
  int64_t image, row, pixel;

  T* at(int64_t n, int64_t y) const { return data + n * image + y * row; }
};

struct Conv3x3Size {
  int64_t images, height, width, inputs, outputs;

  // Rows of 4x4 tiles, of all images.
  int64_t tile_rows() const { return images * tile_rows_of_image(); }
  int64_t tile_rows_of_image() const { return (height + 3) / 4; }
  int64_t tiles() const { return (width + 3) / 4; }  // of a row
};

struct Conv3x3Forward {
  Conv3x3Size size;
  Maps<const float> x;
  Maps<float> y;
  const float* weights;  // [36][inputs][groups of outputs][lane], transformed
  const float* bias;     // [groups of outputs][lane]
};

// The gradients of a part of the tile rows.
struct Conv3x3Gradient {
  Conv3x3Size size;
  Maps<const float> x, grad;
  float* weights;  // [36][groups of inputs][lane][groups of outputs][lane], transformed
  double* bias;    // [outputs]
};

// The kernels of one instruction set.
struct Conv3x3Kernels {
  int64_t lanes;
  int64_t (*forward_scratch)(const Conv3x3Size&);  // in floats, as is gradient_scratch
  int64_t (*gradient_scratch)(const Conv3x3Size&);
  // From weight[output][input][3][3] with these strides, in floats.
  void (*transform)(const Conv3x3Size&, const float* weight, const int64_t* strides, float* to);
  // The tile rows [first, end).
  void (*forward)(const Conv3x3Forward&, int64_t first, int64_t end, float* scratch);
  void (*gradient)(const Conv3x3Gradient&, int64_t first, int64_t end, float* scratch);
  // To grad_weight[output][input][3][3], without gaps.
  void (*transform_back)(const Conv3x3Size&, const float* weights, float* grad_weight);
};

}  // namespace espan::cpu
