// The constant matrices of the loss, in the register order of an mma, computed at compile time.
#pragma once

#include "../frequency_loss.h"

namespace espan::cuda {

// |v| rounded to 11 bits, as m 2^(e - 10) with 1024 <= m <= 2048, or less at the lowest exponent.
struct ElevenBits {
  int m, e;

  constexpr ElevenBits(double v, int lowest) : m(0), e(0) {
    double a = v < 0 ? -v : v;
    if (a == 0) return;
    for (; a >= 2; a /= 2) ++e;
    for (; a < 1 && e > lowest; a *= 2) --e;
    m = static_cast<int>(a * 1024 + 0.5);
  }
  constexpr double value(double v) const {
    double a = m / 1024.0;
    for (int i = 0; i < e; ++i) a *= 2;
    for (int i = 0; i > e; --i) a /= 2;
    return v < 0 ? -a : a;
  }
};

constexpr uint32_t half_bits(double v) {
  const ElevenBits b(v, -14);
  if (b.m == 0) return 0;
  return (v < 0 ? 0x8000u : 0u) + (b.m < 1024 ? b.m : (b.e + 15) * 1024 + b.m - 1024);
}
constexpr uint32_t tf32_bits(double v) {
  const ElevenBits b(v, -100);
  if (b.m == 0) return 0;
  return (v < 0 ? 0x80000000u : 0u) + (((b.e + 127) * 1024 + b.m - 1024) << 13);
}
// v minus its rounding to 11 bits: the second part when a product is computed in two.
constexpr double half_rest(double v) { return v - ElevenBits(v, -14).value(v); }
constexpr double tf32_rest(double v) { return v - ElevenBits(v, -100).value(v); }

// Row k, column n of the DCT matrix.
constexpr double dct_entry(int k, int n) {
  constexpr double kCos[9] = {0.5, kCos1, kCos2, kCos3, kCos4, kCos5, kCos6, kCos7, 0};
  if (k == 0) return kCos4;
  int i = (2 * n + 1) * k % 32;
  if (i > 16) i = 32 - i;
  return i > 8 ? -kCos[16 - i] : kCos[i];
}

// The weight of the blur at distance i.
constexpr double blur_entry(int i) {
  if (i < 0) i = -i;
  return i == 0 ? 1 - 2 * (double{kBlur1} + kBlur2) : i == 1 ? kBlur1 : i == 2 ? kBlur2 : 0.0;
}

// Two products of 8 columns make 16 adjacent pixels: lane q of a quad has pixels 4 q and 4 q + 1 in
// the first and 4 q + 2 and 4 q + 3 in the second, so that it stores 4 adjacent pixels.
constexpr int column_of(int product, int n) { return 4 * (n / 2) + 2 * product + n % 2; }

struct LossFragments {
  // A matrix's rest is what its rounding to 11 bits leaves.
  // B of the row DCT in tf32 (k: pixels 0, 2, 4, 6, 1, 3, 5, 7; n: frequencies), and its rest.
  uint32_t forward[2][2][32];
  // B of the transposed row DCT in fp16 (k: frequencies; n: pixels), and its rest as 8 more k.
  uint32_t inverse[2][32];
  // A of the blur down 16 rows, from rows -2 to 13 and, as 8 more k, from rows 10 to 17, the first
  // four with weight 0; and its rest.
  uint32_t down[2][6][32];
  // B of the negative blur along 16 columns, as two products of 8, from columns -4 to 19; and its
  // rest.
  uint32_t along[2][2][3][32];
  // B that selects each column's own value from the same columns.
  uint32_t own[2][3][32];
};

constexpr LossFragments loss_fragments() {
  LossFragments f = {};
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, q = lane % 4;
    for (int i = 0; i < 2; ++i) {
      const double v = dct_entry(g, 2 * q + i);
      f.forward[0][i][lane] = tf32_bits(v);
      f.forward[1][i][lane] = tf32_bits(tf32_rest(v));
    }
    const double low = dct_entry(2 * q, g), high = dct_entry(2 * q + 1, g);
    f.inverse[0][lane] = half_bits(low) | half_bits(high) << 16;
    f.inverse[1][lane] = half_bits(half_rest(low)) | half_bits(half_rest(high)) << 16;
    for (int part = 0; part < 2; ++part) {
      for (int i = 0; i < 6; ++i) {
        const int row = g + i % 2 * 8, k = 2 * q + i / 2 % 2 * 8;
        uint32_t bits = 0;
        for (int j = 0; j < 2; ++j) {
          const int from = i < 4 ? k + j - 2 : k + j + 10;
          const double v = i < 4 || k + j >= 4 ? blur_entry(from - row) : 0;
          bits |= half_bits(part ? half_rest(v) : v) << 16 * j;
        }
        f.down[part][i][lane] = bits;
      }
      for (int product = 0; product < 2; ++product)
        for (int i = 0; i < 3; ++i) {
          uint32_t bits = 0, own = 0;
          for (int j = 0; j < 2; ++j) {
            const int distance = 2 * q + 8 * i + j - 4 - column_of(product, g);
            const double v = -blur_entry(distance);
            bits |= half_bits(part ? half_rest(v) : v) << 16 * j;
            own |= half_bits(distance == 0) << 16 * j;
          }
          f.along[part][product][i][lane] = bits;
          f.own[product][i][lane] = own;
        }
    }
  }
  return f;
}

}  // namespace espan::cuda
