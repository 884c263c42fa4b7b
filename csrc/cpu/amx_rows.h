// What the kernels of the AMX path are told: pointers and sizes, no tensors.
//
// A row of a feature map is [pixel][channel] in bf16, the channels padded with zeros to a multiple
// of 16: with 32 a pixel is a cache line.  So what a kernel row of a 3x3 convolution reads for one
// pixel follows each other, and the next pixel's begins `step` bytes further.  fp32 values are
// kept as two such halves: the value rounded to bf16, and `low` bytes further what that took away,
// rounded as well.
#pragma once

#include <cstdint>

#include "network_tasks.h"

namespace espan::cpu::amx {

constexpr int64_t kTilePixels = 16;   // rows of a tile of inputs or sums
constexpr int64_t kChunk = 32;        // bf16 values in a row of a tile of inputs
constexpr int64_t kOutputs = 16;      // columns of a tile of sums
constexpr int64_t kTileFloats = 256;  // in any tile: 1 KB
constexpr int64_t kBlockPixels = 2 * kTilePixels;

// A row of pixels in bf16.
struct Halves {
  char* data;         // of the first pixel
  int64_t step, low;  // bytes
};

// Sums of products for the pixels of a row: over the chunks, of the 32 values at
// in[chunk] + x * step, times the chunk's weights.
struct Products {
  const char* const* in;
  int64_t chunks;
  int64_t step, low;
  bool three;                     // high * high + high * low + low * high; else the first only
  const float* weights;           // tiles: [chunk][group][high, and low if `three`]
  int64_t pixels, groups;         // groups of 16 outputs
  const float* init;              // what the sums start with, 16 values per group
  int64_t init_plane, init_step;  // floats from group to group; and from pixel to pixel, or 0
};

// A row of a convolution that becomes a row of features.
struct FeatureRow {
  Products products;
  Activation activation;  // not `add`: that is what the sums start with
  Halves other;           // what the gate takes
  Halves out;
  bool both;  // whether features are kept as both halves
};

// A row of a convolution that is kept as its sums, fp32 [group][pixel][16].
struct SumRow {
  Products products;
  float* out;
  int64_t plane;  // floats from group to group
};

// A row of the last convolution, put into the image; its outputs are as in UpsampleRow.
struct ImageRow {
  Products products;
  Pixels image;  // of the first pixel
  int64_t scale;
  Range* range;
};

// Floats of a block's sums, and of scratch that rows of so many groups take.
inline int64_t block_size(int64_t groups) { return kBlockPixels * groups * kOutputs; }
int64_t scratch_size(int64_t groups);

// `count` rows of one layer; each row's last pixels are finished during the next one's products.
// Numbers below 2^-126 are 0 to the vector instructions, as they are to the matrix unit: SiLU makes
// them of -90, and each would take some 150 cycles.
void run(const FeatureRow* rows, int64_t count, float* scratch);
void run(const SumRow* rows, int64_t count, float* scratch);
void run(const ImageRow* rows, int64_t count, float* scratch);

// n values, to both halves; up to 15 zeros follow each.
void split(const float* from, int64_t n, char* high, char* low);

}  // namespace espan::cpu::amx
