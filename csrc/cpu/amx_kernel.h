// Rows of convolutions on the matrix unit.  Compiled by amx_rows.cpp.
#include "amx_finish.h"
#include "amx_product.h"
#include "to_image.h"
#include "to_planes.h"

template <int kPixelTiles, int kGroups, class Between>
inline void products_of(const Products& p, int64_t x, int64_t group, float* sums,
                        Between& between) {
  if (p.three)
    TileProduct<kPixelTiles, kGroups, true>{p}.run(x, group, sums, between);
  else
    TileProduct<kPixelTiles, kGroups, false>{p}.run(x, group, sums, between);
}

template <int kPixelTiles, class Between>
inline void block_products(const Products& p, int64_t x, float* sums, Between& between) {
  int64_t group = 0;
  for (; group + 1 < p.groups; group += 2) products_of<kPixelTiles, 2>(p, x, group, sums, between);
  if (group < p.groups) products_of<kPixelTiles, 1>(p, x, group, sums, between);
}

// Finishes a block while the products of the next one are computed.  Each call processes the next
// few pixels, in multiples of kUnit, so that all are done after `calls` calls.
template <int kUnit, class Row, class Finish>
struct Finishing {
  const Finish& finish;
  const int64_t calls;
  const Row* row = nullptr;
  int64_t x = 0, pixels = 0, called = 0, done = 0;
  const float* sums = nullptr;

  void operator()() { until(++called * kBlockPixels / kUnit / calls * kUnit); }
  void rest() { until(pixels); }
  void next(const Row& r, int64_t first, const float* s) {
    row = &r;
    x = first;
    pixels = std::min(r.products.pixels - x, kBlockPixels);
    called = done = 0;
    sums = s;
  }

 private:
  void until(int64_t end) {
    end = std::min(end, pixels);
    if (end > done) finish(*row, Part{x, done, end, sums});
    done = std::max(done, end);
  }
};

// Calls finish(row, part) once the part's sums are computed, for all pixels of the rows, which
// belong to one layer.  Blocks read past the last pixel; those sums are discarded.
template <int kUnit = 1, class Row, class Finish>
inline void for_blocks(const Row* rows, int64_t count, float* sums, const Finish& finish) {
  const Products& first = rows->products;
  float* other = sums + block_size(first.groups);
  Finishing<kUnit, Row, Finish> finishing{
      finish, first.chunks * ((first.groups + 1) / 2) * (first.three ? 3 : 1)};
  for (const Row* row = rows; row < rows + count; ++row)
    for (int64_t x = 0; x < row->products.pixels; x += kBlockPixels) {
      if (row->products.pixels - x > kTilePixels)
        block_products<2>(row->products, x, sums, finishing);
      else
        block_products<1>(row->products, x, sums, finishing);
      finishing.rest();
      finishing.next(*row, x, sums);
      std::swap(sums, other);
    }
  finishing.rest();
}

template <Activation kActivation, bool kBoth>
void feature_rows(const FeatureRow* rows, int64_t count, float* sums) {
  for_blocks(rows, count, sums, [](const FeatureRow& r, const Part& part) {
    finish_features<kActivation, kBoth>(r, part);
  });
}

struct Nothing {
  void operator()() const {}
};

// Rows whose gate has a convolution: the sums of a block become features, which are multiplied with
// the gate's weights.  The two products alternate with vector instructions.
template <Activation kActivation, bool kBoth>
void gated_rows(const FeatureRow* rows, int64_t count, float* sums) {
  const Products& first = rows->products;
  const int64_t groups = first.groups, chunks = (groups + 1) / 2;
  float* gate_sums = sums + block_size(groups);
  char* features = reinterpret_cast<char*>(gate_sums + block_size(groups));
  const int64_t step = chunks * 2 * kChunk, half = kBlockPixels * step;
  // With an odd number of groups, the last chunk is half empty.
  __builtin_memset(features, 0, 2 * half);
  Products gate{};
  Halves in[128];  // chunks of at most 4096 channels
  for (int64_t i = 0; i < chunks; ++i) in[i] = {features + i * 2 * kChunk, step, half};
  gate.in = in;
  gate.chunks = chunks;
  gate.three = kBoth;
  gate.weights = rows->gate_weights;
  gate.groups = groups;
  gate.init = rows->gate_bias;
  gate.init_plane = kOutputs;
  Nothing between;
  for (const FeatureRow* row = rows; row < rows + count; ++row)
    for (int64_t x = 0; x < row->products.pixels; x += kBlockPixels) {
      block_products<2>(row->products, x, sums, between);
      FeatureRow inner = *row;
      inner.out = {features - x * step, step, half};
      const int64_t pixels = std::min(row->products.pixels - x, kBlockPixels);
      const Part part{x, 0, pixels, sums};
      finish_features<Activation::none, kBoth>(inner, part);
      block_products<2>(gate, 0, gate_sums, between);
      finish_gate<kActivation, kBoth>(*row, part, Part{x, 0, pixels, gate_sums});
    }
}

template <bool kBoth>
inline void feature_rows(const FeatureRow* rows, int64_t count, float* sums) {
  switch (rows->activation) {
    case Activation::silu:
      return feature_rows<Activation::silu, kBoth>(rows, count, sums);
    case Activation::relu:
      return feature_rows<Activation::relu, kBoth>(rows, count, sums);
    case Activation::mish:
      return feature_rows<Activation::mish, kBoth>(rows, count, sums);
    case Activation::gate_sigmoid:
      return feature_rows<Activation::gate_sigmoid, kBoth>(rows, count, sums);
    case Activation::gate_linear:
      return gated_rows<Activation::gate_linear, kBoth>(rows, count, sums);
    case Activation::gate_tanh:
      return gated_rows<Activation::gate_tanh, kBoth>(rows, count, sums);
    default:
      return feature_rows<Activation::none, kBoth>(rows, count, sums);
  }
}

inline void sum_rows(const SumRow* rows, int64_t count, float* sums) {
  for_blocks(rows, count, sums, [](const SumRow& r, const Part& part) {
    for (int64_t group = 0; group < r.products.groups; ++group)
      for (int64_t i = part.first; i < part.end; ++i)
        store(r.out + group * r.plane + (part.x + i) * kLanes, load(part.at(group, i)));
  });
}

template <class T>
inline void image_rows(const ImageRow* rows, int64_t count, float* sums) {
  const int64_t groups = rows->products.groups, step = groups * kLanes;
  T* ordered = reinterpret_cast<T*>(sums + 2 * block_size(groups));
  VecRange range = start_range(*rows->range);
  for_blocks<4>(rows, count, sums, [&](const ImageRow& r, const Part& part) {
    int64_t i = part.first;
    T* to = static_cast<T*>(r.image.data) + (part.x + i) * r.scale * r.image.column;
    if constexpr (std::is_same_v<T, float>)
      if (r.scale == 4 && r.image.column == 1)
        for (; i + 4 <= part.end; i += 4, to += 16) store_planes(part, i, r.image, range, to);
    const int64_t begin = i;
    for (; i < part.end; ++i)
      for (int64_t group = 0; group < groups; ++group) {
        const VecF v = load(part.at(group, i));
        widen(range, v);
        store(ordered + (i - begin) * step + group * kLanes, v);
      }
    shuffle(ordered, step, i - begin, r.scale, r.image, to);
  });
  end_range(range, *rows->range);
}

inline void split_row(const float* from, int64_t n, char* high, char* low) {
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    Pair v{};
    const int64_t left = n - i;
    __builtin_memcpy(&v, from + i, 4 * (left < 2 * kLanes ? left : 2 * kLanes));
    store_pair<true>(high + 2 * i, low - high, v);
  }
}
