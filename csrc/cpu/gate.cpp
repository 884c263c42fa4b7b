// The gate on the CPU: checks, memory layouts and threading around gate_kernel.h.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#define ESPAN_KERNEL "gate_kernel.h"
#include "for_each_isa.h"

namespace espan::cpu {
namespace {

// Elements per task.  Waking a thread costs about 5 us, as much as 16,384 elements on one core.
constexpr int64_t kGrain = 16384;

template <class T>
void forward(const T* o, const T* x, T* y, int64_t n) {
  ESPAN_ON_ISA(gate_forward(o, x, y, n));
}

template <class T>
void backward(const T* g, const T* o, const T* x, T* grad_o, T* grad_x, int64_t n) {
  ESPAN_ON_ISA(gate_backward(g, o, x, grad_o, grad_x, n));
}

// float64 serves gradient checks only, so plain loops are enough.
void forward(const double* o, const double* x, double* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = (o[i] + x[i]) * (0.5 * std::tanh(0.5 * o[i]));
}

void backward(const double* g, const double* o, const double* x, double* grad_o, double* grad_x,
              int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double minus_half = 0.5 * std::tanh(0.5 * o[i]);
    const double e = std::exp(-std::abs(o[i]));
    const double slope = e / ((1 + e) * (1 + e));
    grad_o[i] = g[i] * (minus_half + (o[i] + x[i]) * slope);
    grad_x[i] = g[i] * minus_half;
  }
}

template <class T>
void run_forward(const Tensor& o, const Tensor& x, const Tensor& y) {
  const T *po = o.const_data_ptr<T>(), *px = x.const_data_ptr<T>();
  T* py = y.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, y.numel(), kGrain, [=](int64_t begin, int64_t end) {
    forward(po + begin, px + begin, py + begin, end - begin);
  });
}

template <class T>
void run_backward(const Tensor& g, const Tensor& o, const Tensor& x, const Tensor& grad_o,
                  const Tensor& grad_x) {
  const T *pg = g.const_data_ptr<T>(), *po = o.const_data_ptr<T>(), *px = x.const_data_ptr<T>();
  T *pgo = grad_o.mutable_data_ptr<T>(), *pgx = grad_x.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, o.numel(), kGrain, [=](int64_t begin, int64_t end) {
    backward(pg + begin, po + begin, px + begin, pgo + begin, pgx + begin, end - begin);
  });
}

Tensor gate(const Tensor& o, const Tensor& x) {
  check_gate("espan::gate", o, x);
  const Tensor y = torch::stable::empty_like(o);
  const Tensor dense_o = laid_out_like(y, o), dense_x = laid_out_like(y, x);
  for_dtype(o, [&](auto zero) { run_forward<decltype(zero)>(dense_o, dense_x, y); });
  return y;
}

std::tuple<Tensor, Tensor> gate_backward(const Tensor& grad, const Tensor& o, const Tensor& x) {
  check_gate_backward("espan::gate_backward", grad, o, x);
  const Tensor grad_o = torch::stable::empty_like(o), grad_x = torch::stable::empty_like(o);
  const Tensor dense_grad = laid_out_like(grad_o, grad), dense_o = laid_out_like(grad_o, o);
  const Tensor dense_x = laid_out_like(grad_o, x);
  for_dtype(o, [&](auto zero) {
    run_backward<decltype(zero)>(dense_grad, dense_o, dense_x, grad_o, grad_x);
  });
  return {grad_o, grad_x};
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) {
  m.impl("gate", TORCH_BOX(&espan::cpu::gate));
  m.impl("gate_backward", TORCH_BOX(&espan::cpu::gate_backward));
}
