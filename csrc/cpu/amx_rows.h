// Arguments of the AMX path's kernels: pointers and sizes, no tensors.
//
// A row of a feature map is [pixel][channel] in bf16, with channels zero-padded to a multiple of
// 16; a pixel of 32 channels is one cache line.  So the values that one row of a 3x3 kernel reads
// for a pixel are contiguous, and those of the next pixel start `step` bytes further on.  An fp32
// value is kept as two such halves: the value rounded to bf16 and, `low` bytes further on, the
// rounding error, itself rounded to bf16.
#pragma once

#include <cstdint>

#include "network_tasks.h"

namespace espan::cpu::amx {

constexpr int64_t kTilePixels = 16;   // rows of a tile of inputs or sums
constexpr int64_t kChunk = 32;        // bf16 values in a row of a tile of inputs
constexpr int64_t kOutputs = 16;      // columns of a tile of sums
constexpr int64_t kTileFloats = 256;  // the size of any tile: 1 KB
constexpr int64_t kBlockPixels = 2 * kTilePixels;

// A row of pixels in bf16.
struct Halves {
  char* data;         // the first pixel
  int64_t step, low;  // bytes
};

// For each pixel x of a row, the sum over all chunks of the 32 values at its pixel x times the
// chunk's weights.
struct Products {
  const Halves* in;
  int64_t chunks;
  bool three;                     // high * high + high * low + low * high; else high * high
  const float* weights;           // tiles: [chunk][group][high, and low if `three`]
  int64_t pixels, groups;         // groups of 16 outputs
  const float* init;              // initial values of the sums, 16 per group
  int64_t init_plane, init_step;  // floats from group to group; from pixel to pixel, or 0
};

// A row of a convolution whose output is a feature map.
struct FeatureRow {
  Products products;
  Activation activation;  // never `add`: `init` holds the addend
  Halves other;           // the gate's second operand
  Halves out;
  bool both;  // whether features have both halves
  // Of the gate's convolution.
  const float *gate_weights, *gate_bias;
};

// A row of a convolution whose sums are stored in fp32, [group][pixel][16].
struct SumRow {
  Products products;
  float* out;
  int64_t plane;  // floats from group to group
};

// A row of the last convolution, written to the image.  Its outputs are ordered as in UpsampleRow.
struct ImageRow {
  Products products;
  Pixels image;  // at the first pixel
  int64_t scale;
  Range* range;
};

// Floats of a block's sums, and of the scratch memory for rows of `groups` groups.
inline int64_t block_size(int64_t groups) { return kBlockPixels * groups * kOutputs; }
int64_t scratch_size(int64_t groups);

// A block of features in bf16: the results of a layer whose gate has a convolution.
inline int64_t features_size(int64_t groups) { return block_size((groups + 1) / 2 * 2); }

// Computes `count` rows of one layer, finishing each row's last pixels during the products of the
// next.  Vector instructions treat denormals (below 2^-126) as 0, as the matrix unit does: SiLU
// produces them for inputs such as -90, and each would cost about 150 cycles.
void run(const FeatureRow* rows, int64_t count, float* scratch);
void run(const SumRow* rows, int64_t count, float* scratch);
void run(const ImageRow* rows, int64_t count, float* scratch);

// Splits n values into both halves, zero-padding n to a multiple of 32.
void split(const float* from, int64_t n, char* high, char* low);

}  // namespace espan::cpu::amx
