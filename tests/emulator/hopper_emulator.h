// csrc/cuda/hopper.cuh for g++.  Asynchronous operations happen as late as a GPU may perform them.
// Copies land when a thread waits for their barrier and no other thread can run.  A product reads
// its operands and writes its results at the wait; until then the accumulators are NaN.
#pragma once

#include <limits>

#define ESPAN_WGMMA

namespace espan::cuda {

inline void synchronize_warp() {
  emulator::collective("__syncwarp", 0, nullptr, true,
                       [](emulator::Lane*) { emulator::join_warp(); });
}
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

// Orders stores that the thread made, or that a barrier made visible to it, before accesses by
// wgmma or bulk copies.  Our kernels need none, since only bulk copies write what wgmma reads.
inline void proxy_fence() { emulator::proxy_fence(); }

inline uint64_t descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  const uint32_t low = (address & 0x3ffff) >> 4 | leading >> 4 << 16;
  return low | static_cast<uint64_t>(stride >> 4) << 32;
}

// Computes the product of a warpgroup's 128 threads, at the wait.
template <class T, int N>
void wgmma_now(const emulator::Product* const* products) {
  float b[16][N];
  for (int n = 0; n < N; ++n)
    for (int k = 0; k < 16; k += 8) {
      const unsigned char* eight = emulator::shared(products[0]->operand(n, k), 16);
      for (int i = 0; i < 8; ++i) {
        uint16_t bits;
        std::memcpy(&bits, eight + 2 * i, 2);
        b[k + i][n] = T::widen(bits);
      }
    }
  for (int row = 0; row < 64; ++row) {
    float sum[N];
    const int first = row / 16 * 32 + row % 8 * 4, high = row / 8 % 2;
    for (int n = 0; n < N; ++n) {
      const emulator::Product& p = *products[first + n % 8 / 2];
      sum[n] = p.accumulate ? p.d[n / 8 * 4 + high * 2 + n % 2] : 0;
    }
    for (int k = 0; k < 16; ++k) {
      const uint32_t pair = products[first + k % 8 / 2]->a[k / 8 * 2 + high];
      const float a = T::widen(k % 2 ? pair >> 16 : pair & 0xffff);
      for (int n = 0; n < N; ++n) sum[n] += a * b[k][n];
    }
    for (int n = 0; n < N; ++n)
      products[first + n % 8 / 2]->d[n / 8 * 4 + high * 2 + n % 2] = sum[n];
  }
}

template <class T, int N>
void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  emulator::start_product({d, N / 2, a, b, accumulate, &wgmma_now<T, N>});
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
