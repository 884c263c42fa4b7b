// The source of the loss's CUDA kernels on tests/emulator, which runs threads as fibers.  Shared
// memory is NaN at first and warps run in a chosen order, which reveals missing barriers.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <type_traits>

#include "emulator/machine.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __noinline__
#define __noinline__
#define threadIdx (espan::emulator::thread_index())
#define blockIdx (espan::emulator::block_index())
#define __syncthreads() espan::emulator::barrier()
#define ESPAN_EMULATOR
using std::max;
using std::min;

// The instructions of csrc/cuda/loss_instructions.cuh.
namespace espan::cuda {

// Counts the wavefronts of memory accesses.  The n-th accesses of a kind by the lanes of a warp are
// one access of the warp.
class Accesses {
 public:
  void note(const char* kind, const void* at, uint32_t bytes);
  // Every thread must call this at its end.
  void finish();

 private:
  using Key = std::tuple<const char*, unsigned, unsigned, uint32_t>;  // kind, warp, which, bytes
  unsigned finished_ = 0;
  std::map<Key, std::array<emulator::Lane, 32>> accesses_;
  std::map<std::pair<const char*, unsigned>, unsigned> made_;
};

Accesses* accesses;

inline unsigned char* loss_shared_memory() { return emulator::shared(0, 1); }
inline uint32_t shared_address(const void* at) {
  return static_cast<const unsigned char*>(at) - loss_shared_memory();
}

template <class V>
V load_shared(const char* kind, const void* from) {
  accesses->note(kind, from, sizeof(V));
  return *static_cast<const V*>(from);
}
template <class V>
void store_shared(const char* kind, void* to, V v) {
  accesses->note(kind, to, sizeof(V));
  *static_cast<V*>(to) = v;
}

template <int kCount, bool kTransposed>
void load_8x8(uint32_t* m, const void* row) {
  emulator::collective(kTransposed ? "ldmatrix.trans" : "ldmatrix", shared_address(row), m, true,
                       [](emulator::Lane* lane) {
                         emulator::count("ldmatrix", lane, 16);
                         for (int i = 0; i < kCount; ++i) {
                           uint16_t matrix[8][8];
                           for (int r = 0; r < 8; ++r)
                             std::memcpy(matrix[r], emulator::shared(lane[8 * i + r].address, 16),
                                         16);
                           for (int l = 0; l < 32; ++l) {
                             const int g = l / 4, q = l % 4 * 2;
                             const uint32_t low = kTransposed ? matrix[q][g] : matrix[g][q];
                             const uint32_t high = kTransposed ? matrix[q + 1][g] : matrix[g][q + 1];
                             static_cast<uint32_t*>(lane[l].data)[i] = low | high << 16;
                           }
                         }
                       });
}
inline void load_matrices(uint32_t (&m)[4], const void* row) { load_8x8<4, false>(m, row); }
inline void load_matrices(uint32_t (&m)[2], const void* row) { load_8x8<2, false>(m, row); }
inline void load_transposed(uint32_t (&m)[4], const void* row) { load_8x8<4, true>(m, row); }

struct Product {
  float* d;
  uint32_t a[4], b[2];
};

// d += a b, with the operands that `unpack` extracts from each lane's registers.
template <int kDepth, class Unpack>
void multiply_in_order(emulator::Lane* lane, Unpack unpack) {
  float a[16][kDepth], b[kDepth][8], d[16][8];
  for (int l = 0; l < 32; ++l) {
    const Product& p = *static_cast<const Product*>(lane[l].data);
    unpack(p, l / 4, l % 4, a, b);
    for (int i = 0; i < 4; ++i) d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = p.d[i];
  }
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < kDepth; ++k)
      for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; ++l) {
    const Product& p = *static_cast<const Product*>(lane[l].data);
    for (int i = 0; i < 4; ++i) p.d[i] = d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
  }
}

inline float half_at(uint32_t bits, int i) {
  const uint16_t half = bits >> 16 * i;
  __half v;
  std::memcpy(&v, &half, sizeof v);
  return __half2float(v);
}

template <int kDepth>
void multiply_halves(Product p) {
  emulator::collective("mma of float16", kDepth, &p, true, [](emulator::Lane* lane) {
    multiply_in_order<kDepth>(lane, [](const Product& p, int g, int q, auto& a, auto& b) {
      for (int j = 0; j < 2; ++j) {
        for (int i = 0; i < kDepth / 4; ++i)
          a[g + i % 2 * 8][2 * q + i / 2 * 8 + j] = half_at(p.a[i], j);
        for (int i = 0; i < kDepth / 8; ++i) b[2 * q + 8 * i + j][g] = half_at(p.b[i], j);
      }
    });
  });
}
inline void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_halves<16>({d, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
}
inline void multiply(float (&d)[4], const uint32_t (&a)[2], uint32_t b) {
  multiply_halves<8>({d, {a[0], a[1]}, {b}});
}
inline void multiply_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Product p{d, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  emulator::collective("mma of tf32", 0, &p, true, [](emulator::Lane* lane) {
    multiply_in_order<8>(lane, [](const Product& p, int g, int q, auto& a, auto& b) {
      const auto tf32 = [](uint32_t bits) {  // the lower bits are ignored
        float v;
        bits &= 0xffffe000u;
        std::memcpy(&v, &bits, sizeof v);
        return v;
      };
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][q + i / 2 * 4] = tf32(p.a[i]);
      for (int i = 0; i < 2; ++i) b[q + 4 * i][g] = tf32(p.b[i]);
    });
  });
}

inline uint32_t sign_pair(float low, float high) {
  const auto sign = [](float v) { return v != v ? 0x7fff : v > 0 ? 0x3f80 : v < 0 ? 0xbf80 : 0; };
  return sign(low) | static_cast<uint32_t>(sign(high)) << 16;
}

template <class V>
V exchange(V v, int bits) {
  struct Value {
    V v;
    int bits;
  } value{v, bits};
  emulator::collective("shfl", 0, &value, true, [](emulator::Lane* lane) {
    V from[32];
    const auto at = [&](int l) { return static_cast<Value*>(lane[l].data); };
    for (int l = 0; l < 32; ++l) from[l] = at(l ^ at(l)->bits)->v;
    for (int l = 0; l < 32; ++l) at(l)->v = from[l];
  });
  return value.v;
}

unsigned exact_threads;  // threads for which the vote was true in the last run

// Two barriers separate the votes of this call from those of the next.
inline bool barrier_any(bool v) {
  static bool any;
  static unsigned voted;
  if (voted++ == 0) any = false;
  any |= v;
  emulator::barrier();
  const bool result = any;
  voted = 0;
  emulator::barrier();
  exact_threads += result;
  return result;
}

template <class V>
V load_constant(const V* from) {
  return *from;
}

}  // namespace espan::cuda

#include "cuda/frequency_loss.cuh"

void espan::cuda::Accesses::note(const char* kind, const void* at, uint32_t bytes) {
  const uint32_t address = shared_address(at);
  const unsigned thread = threadIdx.x;
  const unsigned which = made_[{kind, thread}]++;
  auto& lanes = accesses_[{kind, thread / 32, which, bytes}];
  lanes[thread % 32] = {address, nullptr, true};
}

void espan::cuda::Accesses::finish() {
  if (++finished_ % kLossThreads) return;
  for (auto& [key, lanes] : accesses_)
    emulator::count(std::get<0>(key), lanes.data(), std::get<3>(key));
  accesses_.clear();
  made_.clear();
}

namespace {

using Counts = std::map<std::string, espan::emulator::Wavefronts>;
Counts counts;  // for the last run

// Like run() in csrc/cuda/frequency_loss.cu; `sums` has room for three floats per tile.
template <class T>
void loss(const T* sr, const T* hr, T* grad, const float* scale, float* sums, float* loss,
          float* terms, int64_t planes, int64_t height, int64_t width,
          const espan::LossOptions& options, bool aligned, unsigned order) {
  using namespace espan;
  using namespace espan::cuda;
  const Axis vertical = cut(height, kLossRowBlocks), horizontal = cut(width, kLossColumnBlocks);
  const unsigned tiles = planes * vertical.tiles * horizontal.tiles;
  const double elements = planes * height * width;
  const double coefficients = 64.0 * planes * vertical.blocks * horizontal.blocks;
  const LossArguments<T> p = {
      sr,     hr,       grad,       scale,
      sums,   vertical, horizontal, options.weights(elements, coefficients, 1.0),
      aligned};
  Accesses noted;
  accesses = &noted;
  exact_threads = 0;
  counts = emulator::run(tiles, kLossThreads, sizeof(LossShared), order, {}, [&] {
    grad ? frequency_loss_kernel<T, true>(p) : frequency_loss_kernel<T, false>(p);
    noted.finish();
  });
  const LossSumArguments q = {
      sums,          tiles,        elements, coefficients, options.pixel,
      options.hf, options.dct, loss,     terms};
  emulator::run(1, kLossSumThreads, kLossSumBytes, order, {},
                [&] { frequency_loss_sum_kernel(q); });
}

}  // namespace

#define ESPAN_EXPORT(NAME, T)                                                                     \
  extern "C" void loss_##NAME(const T* sr, const T* hr, T* grad, const float* scale, float* sums, \
                              float* value, float* terms, int64_t planes, int64_t height,         \
                              int64_t width, double pixel, double hf, double dct,      \
                              bool squared, bool aligned, unsigned order) {                       \
    loss(sr, hr, grad, scale, sums, value, terms, planes, height, width,                          \
         {pixel, hf, dct, squared}, aligned, order);                                   \
  }

// Wavefronts of one kind of access in the last run: the minimum and the actual number.
extern "C" void loss_wavefronts(const char* kind, uint64_t* fewest, uint64_t* needed) {
  *fewest = counts[kind].fewest;
  *needed = counts[kind].needed;
}

// The number of tiles that the last run computed pixel by pixel.
extern "C" unsigned loss_exact_tiles() {
  return espan::cuda::exact_threads / espan::cuda::kLossThreads;
}

ESPAN_EXPORT(float32, float)
#ifndef ESPAN_FLOAT32_ONLY
ESPAN_EXPORT(float16, __half)
ESPAN_EXPORT(bfloat16, __nv_bfloat16)
#endif
