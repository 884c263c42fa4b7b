// The source of the loss's CUDA kernels, its threads run as fibers by tests/emulator: shared memory
// begins as NaN and warps take turns in an order of choice, so a missing barrier shows.
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
#define threadIdx (espan::emulator::thread_index())
#define blockIdx (espan::emulator::block_index())
#define __syncthreads() espan::emulator::barrier()
#define ESPAN_EMULATOR
#define ESPAN_SHARED_BYTES(name) unsigned char* name = espan::emulator::shared(0, 1)

// What only the GPU has.
static float __uint_as_float(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

namespace espan::cuda {

// Counts the wavefronts of the accesses that lanes of a warp make together: the n-th of their kind,
// or for what load_difference stores, which some lanes skip, those of one round of its loop.
class Accesses {
 public:
  explicit Accesses(int pack) : pack_(pack) {}
  void note(const char* kind, const void* at, uint32_t bytes);
  // To be called by every thread when it is through.
  void finish() {
    if (++finished_ % kThreads) return;
    for (auto& [key, lanes] : accesses_)
      emulator::count(std::get<0>(key), lanes.data(), std::get<3>(key));
    accesses_.clear();
    made_.clear();
  }

 private:
  static constexpr unsigned kThreads = 128;
  using Key = std::tuple<const char*, unsigned, unsigned, uint32_t>;  // kind, warp, which, bytes
  int pack_;
  unsigned finished_ = 0;
  std::map<Key, std::array<emulator::Lane, 32>> accesses_;
  std::map<std::pair<const char*, unsigned>, unsigned> made_;
};

Accesses* accesses;

template <class V>
const char* kind_of(bool store) {
  if (sizeof(V) == 4) return "ld.shared signs beside";
  if (std::is_same_v<V, uint4>) return store ? "st.shared signs" : "ld.shared signs";
  return store ? "st.shared difference" : "ld.shared difference";
}
template <class V>
V load_shared(const void* from) {
  accesses->note(kind_of<V>(false), from, sizeof(V));
  return *static_cast<const V*>(from);
}
template <class V>
void store_shared(void* to, V v) {
  accesses->note(kind_of<V>(true), to, sizeof(V));
  *static_cast<V*>(to) = v;
}

}  // namespace espan::cuda

#include "cuda/frequency_loss.cuh"

void espan::cuda::Accesses::note(const char* kind, const void* at, uint32_t bytes) {
  static_assert(kThreads == kLossThreads);
  const uint32_t address = static_cast<const unsigned char*>(at) -
                           reinterpret_cast<unsigned char*>(emulator::shared(0, 1));
  const unsigned thread = threadIdx.x;
  unsigned which;
  if (std::strcmp(kind, "st.shared difference") == 0) {
    const int row = address / 4 / kLossWide, u = address / 4 % kLossWide, c = u ^ (u >> 3 & 4);
    which = 2 * ((row * (kLossWide / pack_) + c / pack_) / kLossThreads) + c % pack_ / 4;
  } else {
    which = made_[{kind, thread}]++;
  }
  auto& lanes = accesses_[{kind, thread / 32, which, bytes}];
  lanes[thread % 32] = {address, nullptr, true};
}

namespace {

using Counts = std::map<std::string, espan::emulator::Wavefronts>;
Counts counts;  // of the last run

// As run() in csrc/cuda/frequency_loss.cu; `sums` has room for three floats of each tile.
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
  Accesses noted(Pack<T>::kSize);
  accesses = &noted;
  counts = emulator::run(tiles, kLossThreads, sizeof(LossShared), order, {}, [&] {
    grad ? frequency_loss_kernel<T, true>(p) : frequency_loss_kernel<T, false>(p);
    noted.finish();
  });
  const LossSumArguments q = {
      sums,          tiles,        elements, coefficients, options.pixel_weight,
      options.alpha, options.beta, loss,     terms};
  emulator::run(1, kLossSumThreads, 3 * kLossSumThreads * sizeof(double), order, {},
                [&] { frequency_loss_sum_kernel(q); });
}

}  // namespace

#define ESPAN_EXPORT(NAME, T)                                                                     \
  extern "C" void loss_##NAME(const T* sr, const T* hr, T* grad, const float* scale, float* sums, \
                              float* value, float* terms, int64_t planes, int64_t height,         \
                              int64_t width, double pixel_weight, double alpha, double beta,      \
                              bool squared, bool aligned, unsigned order) {                       \
    loss(sr, hr, grad, scale, sums, value, terms, planes, height, width,                          \
         {pixel_weight, alpha, beta, squared}, aligned, order);                                   \
  }

// Wavefronts of the last run: of one kind of access, the fewest possible and those needed.
extern "C" void loss_wavefronts(const char* kind, uint64_t* fewest, uint64_t* needed) {
  *fewest = counts[kind].fewest;
  *needed = counts[kind].needed;
}

ESPAN_EXPORT(float32, float)
#ifndef ESPAN_FLOAT32_ONLY
ESPAN_EXPORT(float16, __half)
ESPAN_EXPORT(bfloat16, __nv_bfloat16)
#endif
