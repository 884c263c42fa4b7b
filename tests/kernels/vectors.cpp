// Compares the conversions of vec.h with torch's, bit by bit, and the exponentials of vec_math.h
// and activation.h with the C library's in double precision, in units of the last place.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/network_tasks.h"

#define ESPAN_KERNEL "../../tests/kernels/vectors_kernel.h"
#include "cpu/for_each_isa.h"

namespace {

uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Every 4,099th float, over all signs, exponents and mantissas, and NaNs with every kind of
// payload.
std::vector<float> floats() {
  std::vector<float> values;
  for (uint64_t bits = 0; bits < (1ull << 32); bits += 4099) {
    const uint32_t b = static_cast<uint32_t>(bits);
    values.push_back(0);
    std::memcpy(&values.back(), &b, sizeof b);
  }
  for (uint32_t b : {0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0x7f80ffffu, 0x7f800000u}) {
    values.push_back(0);
    std::memcpy(&values.back(), &b, sizeof b);
  }
  values.resize(values.size() / 16 * 16);
  return values;
}

template <class T>
int conversion_errors() {
  const std::vector<float> values = floats();
  std::vector<T> narrowed(values.size());
  std::vector<float> widened(values.size());
  const int64_t n = static_cast<int64_t>(values.size());
  ESPAN_ON_ISA(narrow(values.data(), narrowed.data(), n));
  ESPAN_ON_ISA(widen(narrowed.data(), widened.data(), n));
  int wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float expected = static_cast<float>(T(values[i]));
    const bool both_nan = std::isnan(expected) && std::isnan(widened[i]);
    wrong += !both_nan && bits_of(expected) != bits_of(widened[i]);
  }
  return wrong;
}

double ulps(float found, double exact) {
  const float rounded = std::fabs(static_cast<float>(exact));
  return std::fabs(found - exact) / (std::nextafter(rounded, INFINITY) - rounded);
}

// The largest errors of exp and expm1 on [-87, 0], and that they are 0 and -1 below it.
void exponential_errors(double* worst_exp, double* worst_expm1) {
  std::vector<float> x;
  for (double magnitude = 1e-30; magnitude < 87; magnitude *= 1.00001)
    x.push_back(static_cast<float>(-magnitude));
  for (float special : {0.0f, -0.0f, -88.0f, -1e30f, -INFINITY}) x.push_back(special);
  x.resize((x.size() + 15) / 16 * 16, -1.0f);
  std::vector<float> exp(x.size()), expm1(x.size());
  ESPAN_ON_ISA(exponentials(x.data(), exp.data(), expm1.data(), static_cast<int64_t>(x.size())));
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = x[i] < -87 ? 0 : std::exp(static_cast<double>(x[i]));
    *worst_exp = std::max(*worst_exp, ulps(exp[i], exact));
    *worst_expm1 = std::max(*worst_expm1, ulps(expm1[i], std::expm1(static_cast<double>(x[i]))));
  }
}

// The largest errors of e^x, tanh(x/2)/2, SiLU and Mish on [-87, 87].
struct Activations {
  double exp = 0, tanh = 0, silu = 0, mish = 0;

  Activations() {
    std::vector<float> x{0.0f, -0.0f};
    for (double magnitude = 1e-30; magnitude < 87; magnitude *= 1.00001)
      for (double sign : {1.0, -1.0}) x.push_back(static_cast<float>(sign * magnitude));
    x.resize((x.size() + 15) / 16 * 16, -1.0f);
    std::vector<float> e(x.size()), t(x.size()), s(x.size()), m(x.size());
    ESPAN_ON_ISA(activations(x.data(), e.data(), t.data(), s.data(), m.data(),
                             static_cast<int64_t>(x.size())));
    for (size_t i = 0; i < x.size(); ++i) {
      const double wide = x[i];
      exp = std::max(exp, ulps(e[i], std::exp(wide)));
      tanh = std::max(tanh, ulps(t[i], std::tanh(wide / 2) / 2));
      silu = std::max(silu, ulps(s[i], wide / (1 + std::exp(-wide))));
      const double softplus = std::max(wide, 0.0) + std::log1p(std::exp(-std::fabs(wide)));
      mish = std::max(mish, ulps(m[i], wide * std::tanh(softplus)));
    }
  }
};

}  // namespace

int main(int, char** argv) {
  espan::cpu::select(argv[1]);
  double exp = 0, expm1 = 0;
  exponential_errors(&exp, &expm1);
  const Activations a;
  std::printf("%d %d %.2f %.2f %.2f %.2f %.2f %.2f\n", conversion_errors<espan::Half>(),
              conversion_errors<espan::BFloat16>(), exp, expm1, a.exp, a.tanh, a.silu, a.mish);
}
