// csrc/cuda/hopper.cuh for g++.  Asynchronous operations happen as late as a GPU may perform them.
// Copies land when a thread waits for their barrier and no other thread can run.  A product reads
// its operands and writes its results at the wait; until then the accumulators are NaN.
#pragma once

#include <limits>
#include <vector>

#include "tensor_map.h"

#define ESPAN_WGMMA

// CUDA's type; its name is part of the names of kernels.
struct alignas(64) CUtensorMap_st : espan::emulator::TensorMap {};
static_assert(sizeof(CUtensorMap_st) == 128);

namespace espan::cuda {

using TensorMap = CUtensorMap_st;

inline void synchronize_warp() {
  emulator::collective("__syncwarp", 0, nullptr, true,
                       [](emulator::Lane*) { emulator::join_warp(); });
}
inline void synchronize_group(int id) { emulator::group_barrier(id); }
inline int uniform(int v) { return v; }
template <bool Increase, int Count>
void set_registers() {
  static_assert(Count % 8 == 0 && Count >= 24 && Count <= 240);
}
inline void grid_dependency_launch() {}
inline void grid_dependency_wait() {}

inline void barrier_init(uint32_t barrier, uint32_t count) {
  emulator::barrier_init(barrier, count);
}
inline void barrier_init_fence() {}
inline void barrier_arrive(uint32_t barrier) { emulator::barrier_arrive(barrier, 0); }
inline void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) {
  emulator::barrier_arrive(barrier, bytes);
}
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  emulator::barrier_wait(barrier, parity);
}
inline void copies_arrive(uint32_t barrier) { emulator::copies_arrive(barrier); }
inline void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  emulator::bulk_copy(to, from, bytes, barrier);
}

// Boxes have 64 channels, 128 bytes, and are swizzled.
inline void copy_row(uint32_t to, const TensorMap& map, int x, int y, int image, uint32_t barrier) {
  emulator::shared(to, 128);
  std::vector<emulator::Copy> copies;
  const auto inside = [](int i, uint64_t size) {
    return i >= 0 && static_cast<uint64_t>(i) < size;
  };
  for (int i = 0; i < static_cast<int>(map.box[1]); ++i)
    for (int chunk = 0; chunk < 8; ++chunk) {
      const bool take =
          inside(x + i, map.sizes[1]) && inside(y, map.sizes[2]) && inside(image, map.sizes[3]);
      const unsigned char* from = take ? map.data + (x + i) * map.strides[0] + y * map.strides[1] +
                                             image * map.strides[2] + 16 * chunk
                                       : nullptr;
      const uint32_t at = to + i * 128 + chunk * 16;
      copies.push_back({at ^ (at >> 3 & 0x70), from, take, 16});
    }
  emulator::bulk_copies(copies, barrier);
}

inline void load_transposed(uint32_t (&v)[4], uint32_t address) {
  emulator::collective("ldmatrix", address, v, true, [](emulator::Lane* lane) {
    emulator::count("ldmatrix", lane, 16);
    for (int l = 0; l < 32; ++l)
      for (int m = 0; m < 4; ++m)
        for (int i = 0; i < 2; ++i) {
          const uint32_t row = lane[m * 8 + l % 4 * 2 + i].address;
          emulator::shared(row, 16);
          emulator::load(l, static_cast<uint16_t*>(lane[l].data) + 2 * m + i, row + l / 4 * 2, 2);
        }
  });
}
inline void store_transposed(uint32_t address, const uint32_t (&v)[4]) {
  uint32_t values[4] = {v[0], v[1], v[2], v[3]};
  emulator::collective("stmatrix", address, values, true, [](emulator::Lane* lane) {
    emulator::count("stmatrix", lane, 16);
    for (int m = 0; m < 4; ++m)
      for (int row = 0; row < 8; ++row) {
        uint16_t out[8];
        for (int i = 0; i < 8; ++i)
          out[i] = static_cast<const uint16_t*>(lane[i * 4 + row / 2].data)[2 * m + row % 2];
        emulator::store(m * 8 + row, lane[m * 8 + row].address, out, 16);
      }
  });
}

// Orders stores that the thread made, or that a barrier made visible to it, before accesses by
// wgmma or bulk copies.
inline void proxy_fence() { emulator::proxy_fence(); }

inline uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  const uint32_t low = (address & 0x3ffff) >> 4 | leading >> 4 << 16;
  return low | static_cast<uint64_t>(stride >> 4) << 32;
}

inline uint64_t swizzled_descriptor(uint32_t address) {
  return descriptor(address, 16, 1024) | uint64_t{1} << 62;
}

// Computes the product of a warpgroup's 128 threads, at the wait.
template <class T, int N>
void wgmma_now(const emulator::Product* const* products) {
  const auto value = [](uint64_t descriptor, int line, int k) {
    uint16_t bits;
    std::memcpy(&bits, emulator::shared(emulator::operand(descriptor, line, k), 16) + k % 8 * 2, 2);
    return T::widen(bits);
  };
  float b[16][N];
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < 16; ++k) b[k][n] = value(products[0]->b, n, k);
  for (int row = 0; row < 64; ++row) {
    float sum[N];
    const int first = row / 16 * 32 + row % 8 * 4, high = row / 8 % 2;
    for (int n = 0; n < N; ++n) {
      const emulator::Product& p = *products[first + n % 8 / 2];
      sum[n] = p.accumulate ? p.d[n / 8 * 4 + high * 2 + n % 2] : 0;
    }
    for (int k = 0; k < 16; ++k) {
      float a;
      if (products[0]->a == nullptr) {
        a = value(products[0]->a_descriptor, row, k);
      } else {
        const uint32_t pair = products[first + k % 8 / 2]->a[k / 8 * 2 + high];
        a = T::widen(k % 2 ? pair >> 16 : pair & 0xffff);
      }
      for (int n = 0; n < N; ++n) sum[n] += a * b[k][n];
    }
    for (int n = 0; n < N; ++n)
      products[first + n % 8 / 2]->d[n / 8 * 4 + high * 2 + n % 2] = sum[n];
  }
}

template <class T, int N>
void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  emulator::start_product({d, N / 2, a, 0, b, accumulate, &wgmma_now<T, N>});
}
template <class T>
void wgmma(float (&d)[32], uint64_t a, uint64_t b) {
  emulator::start_product({d, 32, nullptr, a, b, true, &wgmma_now<T, 64>});
}
inline void wgmma_fence() { emulator::free_registers(); }
inline void wgmma_commit() { emulator::commit_products(); }
template <int kRunning>
void wgmma_wait() {
  emulator::finish_products(kRunning);
}
template <int N>
void registers_fence(float (&)[N]) {}
template <int N>
void registers_fence(uint32_t (&)[N]) {}
inline void move_out(float& v, float& d, float next) {
  v = d;
  d = next;
}
template <class T>
uint32_t pack_out(float& low, float& high, float next_low, float next_high) {
  const uint32_t v = T::pack(low, high);
  low = next_low;
  high = next_high;
  return v;
}

}  // namespace espan::cuda
