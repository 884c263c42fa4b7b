// csrc/cuda/primitives.cuh for g++.  A CUDA kernel's own source runs on the CPU, one block at a
// time, with each thread as a fiber.  Warp-wide operations (ldmatrix, mma, shared stores, barriers)
// execute when the last lane arrives, and lanes that wait for different operations are an error.
//
// The emulator is stricter than a GPU where that exposes mistakes.  Shared memory starts as NaN.
// An asynchronous copy lands when its thread waits for it and not before.  Global accesses must be
// inside the arrays that the test passed.  Warps run in an order that the test chooses.  Accesses
// to shared memory that no barrier orders are errors in any order (ordering.h).  The emulator also
// counts the wavefronts of shared memory accesses.  It cannot detect its own misunderstanding of an
// instruction; the tests marked gpu do.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define threadIdx (espan::emulator::thread_index())
#define blockIdx (espan::emulator::block_index())

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float __fmaf_rn(float a, float b, float c) { return std::fmaf(a, b, c); }

namespace espan::cuda {

struct Float16 {
  static float widen(uint16_t bits) {
    _Float16 v;
    std::memcpy(&v, &bits, 2);
    return static_cast<float>(v);
  }
  static uint16_t narrow(float v) {
    const _Float16 h = static_cast<_Float16>(v);
    uint16_t bits;
    std::memcpy(&bits, &h, 2);
    return bits;
  }
  static uint32_t pack(float low, float high) {
    return narrow(low) | static_cast<uint32_t>(narrow(high)) << 16;
  }
  static float2 unpack(uint32_t v) { return {widen(v & 0xffff), widen(v >> 16)}; }
};

struct BFloat16 {
  static float widen(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float v;
    std::memcpy(&v, &wide, 4);
    return v;
  }
  static uint16_t narrow(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    if (v != v) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  static uint32_t pack(float low, float high) {
    return narrow(low) | static_cast<uint32_t>(narrow(high)) << 16;
  }
  static float2 unpack(uint32_t v) { return {widen(v & 0xffff), widen(v >> 16)}; }
};

inline uint32_t shared_memory() { return 0; }
inline void synchronize() { emulator::barrier(); }

inline void load_matrix(uint32_t (&a)[4], uint32_t address) {
  emulator::collective("ldmatrix", address, a, true, [](emulator::Lane* lane) {
    emulator::count("ldmatrix", lane, 16);
    for (int l = 0; l < 32; ++l)
      for (int m = 0; m < 4; ++m) {
        const uint32_t row = lane[m * 8 + l / 4].address;
        emulator::shared(row, 16);
        emulator::load(l, static_cast<uint32_t*>(lane[l].data) + m, row + l % 4 * 4, 4);
      }
  });
}

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

template <class T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Product product{d, a, {b0, b1}};
  emulator::collective("mma", 0, &product, true, [](emulator::Lane* lane) {
    float a[16][16], b[16][8], d[16][8];
    for (int l = 0; l < 32; ++l) {
      const Product& p = *static_cast<const Product*>(lane[l].data);
      const int row = l / 4, column = l % 4 * 2;
      for (int i = 0; i < 4; ++i) {
        const float2 v = T::unpack(p.a[i]);
        a[row + i % 2 * 8][column + i / 2 * 8] = v.x;
        a[row + i % 2 * 8][column + i / 2 * 8 + 1] = v.y;
        d[row + i / 2 * 8][column + i % 2] = p.d[i];
      }
      for (int i = 0; i < 2; ++i) {
        const float2 v = T::unpack(p.b[i]);
        b[column + i * 8][row] = v.x;
        b[column + i * 8 + 1][row] = v.y;
      }
    }
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 16; ++k)
        for (int j = 0; j < 8; ++j) d[i][j] += a[i][k] * b[k][j];
    for (int l = 0; l < 32; ++l) {
      const Product& p = *static_cast<const Product*>(lane[l].data);
      for (int i = 0; i < 4; ++i) p.d[i] = d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
    }
  });
}

template <int Bytes>
void copy_async(uint32_t to, const void* from, bool take) {
  static_assert(Bytes == 8 || Bytes == 16);
  emulator::shared(to, Bytes);
  if (take) emulator::check_global(from, Bytes, false);
  emulator::start_copy(to, from, take, Bytes);
}
inline void wait_for_copies() { emulator::finish_copies(); }

template <class V>
void store_shared(uint32_t to, V v, bool keep) {
  emulator::collective("st.shared", to, &v, keep, [](emulator::Lane* lane) {
    emulator::count("st.shared", lane, sizeof(V));
    for (int l = 0; l < 32; ++l)
      if (lane[l].keep) emulator::store(l, lane[l].address, lane[l].data, sizeof(V));
  });
}
inline void load_shared(uint32_t from, uint32_t& v) {
  emulator::collective("ld.shared", from, &v, true, [](emulator::Lane* lane) {
    emulator::count("ld.shared", lane, 4);
    for (int l = 0; l < 32; ++l) emulator::load(l, lane[l].data, lane[l].address, 4);
  });
}
template <class V>
void load_shared(uint32_t from, V& v) {
  emulator::load(threadIdx.x % 32, &v, from, sizeof(V));
}

template <class V>
V load_global(const V* from) {
  emulator::check_global(from, sizeof(V), false);
  return *from;
}
template <class V>
void store_global(V* to, V v) {
  emulator::check_global(to, sizeof(V), true);
  *to = v;
}

inline int round_to_int(float v) { return static_cast<int>(std::nearbyint(v)); }

inline int recompute(int v) { return v; }
inline int thread_again() { return threadIdx.x; }

// y with a relative error of 2^-bits, the largest that an approximate instruction may have; a hash
// of its argument x picks the sign.
inline float with_error(float y, float x, int bits) {
  uint32_t hash;
  std::memcpy(&hash, &x, 4);
  const float error = std::ldexp(1.0f, -bits);
  return y * (1 + (hash * 2654435761u >> 31 ? error : -error));
}
inline float tanh_approximate(float x) {
  const float y = with_error(std::tanh(x), x, 11);
  return y > 1 ? 1.0f : y < -1 ? -1.0f : y;
}
inline float exp2_approximate(float x) { return with_error(std::exp2(x), x, 22); }
inline float reciprocal_approximate(float x) { return with_error(1 / x, x, 23); }

inline uint32_t tanh_of_pair(uint32_t x) {
  const float2 v = Float16::unpack(x);
  return Float16::pack(tanh_approximate(v.x), tanh_approximate(v.y));
}
inline uint32_t fma_of_pairs(uint32_t a, uint32_t b, uint32_t c) {
  const float2 x = Float16::unpack(a), y = Float16::unpack(b), z = Float16::unpack(c);
  return Float16::pack(std::fma(x.x, y.x, z.x), std::fma(x.y, y.y, z.y));
}
inline uint32_t product_of_pairs(uint32_t a, uint32_t b) {
  const float2 x = Float16::unpack(a), y = Float16::unpack(b);
  return Float16::pack(x.x * y.x, x.y * y.y);
}
inline uint32_t sum_of_pairs(uint32_t a, uint32_t b) {
  const float2 x = Float16::unpack(a), y = Float16::unpack(b);
  return Float16::pack(x.x + y.x, x.y + y.y);
}
template <class T>
uint32_t relu_of_pair(uint32_t x) {
  const float2 v = T::unpack(x);
  return T::pack(v.x < 0 ? 0 : v.x, v.y < 0 ? 0 : v.y);
}

}  // namespace espan::cuda
