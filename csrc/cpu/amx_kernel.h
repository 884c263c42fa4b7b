// Rows of convolutions on the matrix unit; compiled by amx_rows.cpp.
#include "amx_finish.h"
#include "amx_product.h"
#include "to_image.h"

template <int kPixelTiles, int kGroups>
inline void products_of(const Products& p, int64_t x, int64_t group, float* sums) {
  if (p.three)
    TileProduct<kPixelTiles, kGroups, true>{p}.run(x, group, sums);
  else
    TileProduct<kPixelTiles, kGroups, false>{p}.run(x, group, sums);
}

template <int kPixelTiles>
inline void block_products(const Products& p, int64_t x, float* sums) {
  int64_t group = 0;
  for (; group + 1 < p.groups; group += 2) products_of<kPixelTiles, 2>(p, x, group, sums);
  if (group < p.groups) products_of<kPixelTiles, 1>(p, x, group, sums);
}

// Calls finish(x, n) after the sums of the pixels [x, x + n) are there.  What is read and summed
// beyond the last pixel is whatever lies there.
template <class Finish>
inline void for_blocks(const Products& p, float* sums, const Finish& finish) {
  for (int64_t x = 0; x < p.pixels; x += kBlockPixels) {
    const int64_t left = p.pixels - x;
    if (left > kTilePixels)
      block_products<2>(p, x, sums);
    else
      block_products<1>(p, x, sums);
    finish(x, left < kBlockPixels ? left : kBlockPixels);
  }
}

template <Activation kActivation, bool kBoth>
void feature_row(const FeatureRow& r, float* sums) {
  for_blocks(r.products, sums,
             [&](int64_t x, int64_t n) { finish_features<kActivation, kBoth>(r, x, n, sums); });
}

template <bool kBoth>
inline void feature_row(const FeatureRow& r, float* sums) {
  switch (r.activation) {
    case Activation::silu:
      return feature_row<Activation::silu, kBoth>(r, sums);
    case Activation::gate:
      return feature_row<Activation::gate, kBoth>(r, sums);
    default:
      return feature_row<Activation::none, kBoth>(r, sums);
  }
}

inline void sum_row(const SumRow& r, float* sums) {
  for_blocks(r.products, sums, [&](int64_t x, int64_t n) {
    for (int64_t group = 0; group < r.products.groups; ++group)
      for (int64_t i = 0; i < n; ++i)
        store(r.out + group * r.plane + (x + i) * kLanes,
              load(sums + (group * kBlockPixels + i) * kLanes));
  });
}

template <class T>
inline void image_row(const ImageRow& r, float* sums) {
  const int64_t groups = r.products.groups, step = groups * kLanes;
  T* shuffled = reinterpret_cast<T*>(sums + kBlockPixels * step);
  VecRange range = start_range(*r.range);
  for_blocks(r.products, sums, [&](int64_t x, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t group = 0; group < groups; ++group) {
        const VecF v = load(sums + (group * kBlockPixels + i) * kLanes);
        widen(range, v);
        store(shuffled + i * step + group * kLanes, v);
      }
    T* to = static_cast<T*>(r.image.data) + x * r.scale * r.image.column;
    shuffle(shuffled, step, n, r.scale, r.image, to);
  });
  end_range(range, *r.range);
}

inline void split_row(const float* from, int64_t n, char* high, char* low) {
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    Pair v{};
    const int64_t left = n - i;
    __builtin_memcpy(&v, from + i, 4 * (left < 2 * kLanes ? left : 2 * kLanes));
    store_pair<true>(high + 2 * i, low - high, v);
  }
}
