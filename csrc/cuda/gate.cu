// The gate on CUDA: checks, memory layouts and launches of gate.cuh.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "gate.cuh"
#include "launch.h"

namespace espan::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
const T* in(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* out(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// The number of whole packs to process: 0 unless every pointer is aligned to 16 bytes.
template <class T, class... Pointers>
int64_t packs(int64_t n, Pointers... pointers) {
  const bool aligned = ((reinterpret_cast<uintptr_t>(pointers) % sizeof(Pack<T>) == 0) && ...);
  return aligned ? n / Pack<T>::kSize : 0;
}

// The number of threads to launch: enough for one per pack, and for one per remaining element.
template <class T>
int64_t work_items(int64_t whole, int64_t n) {
  return std::max(whole, n - whole * Pack<T>::kSize);
}

template <class T>
void run_forward(const Launch& launch, const Tensor& o, const Tensor& x, const Tensor& y) {
  const T *po = in<T>(o), *px = in<T>(x);
  T* py = out<T>(y);
  const int64_t n = y.numel(), whole = packs<T>(n, po, px, py);
  const unsigned blocks = launch.blocks(work_items<T>(whole, n), kThreads);
  gate_forward_kernel<T><<<blocks, kThreads, 0, launch.stream()>>>(po, px, py, whole, n);
}

template <class T>
void run_backward(const Launch& launch, const Tensor& g, const Tensor& o, const Tensor& x,
                  const Tensor& grad_o, const Tensor& grad_x) {
  const T *pg = in<T>(g), *po = in<T>(o), *px = in<T>(x);
  T *pgo = out<T>(grad_o), *pgx = out<T>(grad_x);
  const int64_t n = o.numel(), whole = packs<T>(n, pg, po, px, pgo, pgx);
  const unsigned blocks = launch.blocks(work_items<T>(whole, n), kThreads);
  gate_backward_kernel<T><<<blocks, kThreads, 0, launch.stream()>>>(pg, po, px, pgo, pgx, whole, n);
}

Tensor gate(const Tensor& o, const Tensor& x) {
  check_gate("espan::gate", o, x);
  const Launch launch("espan::gate", o);
  const Tensor y = torch::stable::empty_like(o);
  if (o.numel() == 0) return y;
  const Tensor dense_o = laid_out_like(y, o), dense_x = laid_out_like(y, x);
  for_dtype(
      o, [&](auto zero) { run_forward<DeviceType<decltype(zero)>>(launch, dense_o, dense_x, y); });
  launch.finish();
  return y;
}

std::tuple<Tensor, Tensor> gate_backward(const Tensor& grad, const Tensor& o, const Tensor& x) {
  check_gate_backward("espan::gate_backward", grad, o, x);
  const Launch launch("espan::gate_backward", o);
  const Tensor grad_o = torch::stable::empty_like(o), grad_x = torch::stable::empty_like(o);
  if (o.numel() == 0) return {grad_o, grad_x};
  const Tensor dense_grad = laid_out_like(grad_o, grad), dense_o = laid_out_like(grad_o, o);
  const Tensor dense_x = laid_out_like(grad_o, x);
  for_dtype(o, [&](auto zero) {
    run_backward<DeviceType<decltype(zero)>>(launch, dense_grad, dense_o, dense_x, grad_o, grad_x);
  });
  launch.finish();
  return {grad_o, grad_x};
}

}  // namespace
}  // namespace espan::cuda

STABLE_TORCH_LIBRARY_IMPL(espan, CUDA, m) {
  m.impl("gate", TORCH_BOX(&espan::cuda::gate));
  m.impl("gate_backward", TORCH_BOX(&espan::cuda::gate_backward));
}
