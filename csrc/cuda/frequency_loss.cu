// The frequency-aware loss on CUDA: checks, memory layouts and launches of frequency_loss.cuh.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../frequency_loss_checks.h"
#include "frequency_loss.cuh"
#include "launch.h"

namespace espan::cuda {
namespace {

template <class T, bool kGradient>
void launch_tiles(const char* op, unsigned tiles, cudaStream_t stream, const LossArguments<T>& p) {
  const auto kernel = frequency_loss_kernel<T, kGradient>;
  constexpr int kBytes = sizeof(LossShared);  // above 48 KB, so the kernel must opt in
  check(op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
  kernel<<<tiles, kLossThreads, kBytes, stream>>>(p);
  check(op, cudaGetLastError());
}

bool on_16_bytes(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Fills `result` and, if there is a `scale`, `grad`.  All tensors are contiguous.
template <class T>
void run(const char* op, const Launch& launch, const Tensor& sr, const Tensor& hr,
         const Tensor* grad, const Tensor* scale, const LossOptions& options,
         const LossResult& result) {
  LossArguments<T> p = {};
  p.sr = static_cast<const T*>(sr.const_data_ptr());
  p.hr = static_cast<const T*>(hr.const_data_ptr());
  p.grad = grad ? static_cast<T*>(grad->mutable_data_ptr()) : nullptr;
  p.scale = scale ? scale->const_data_ptr<float>() : nullptr;
  p.vertical = cut(sr.size(2), kLossRowBlocks);
  p.horizontal = cut(sr.size(3), kLossColumnBlocks);
  p.aligned = sr.size(3) % Pack<T>::kSize == 0 && on_16_bytes(p.sr) && on_16_bytes(p.hr) &&
              on_16_bytes(p.grad);
  const int64_t planes = sr.size(0) * sr.size(1);
  const int64_t tiles = planes * p.vertical.tiles * p.horizontal.tiles;
  if (tiles > INT32_MAX)
    fail(op, "sr has shape ", shape_name(sr), ": too many pixels for one launch");
  const double elements = static_cast<double>(sr.numel());
  const double coefficients = 64.0 * planes * p.vertical.blocks * p.horizontal.blocks;
  p.weights = options.weights(elements, coefficients, 1.0);
  const Tensor sums = torch::stable::new_empty(sr, {tiles, 3}, ScalarType::Float);
  p.sums = sums.mutable_data_ptr<float>();
  if (scale)
    launch_tiles<T, true>(op, static_cast<unsigned>(tiles), launch.stream(), p);
  else
    launch_tiles<T, false>(op, static_cast<unsigned>(tiles), launch.stream(), p);

  const LossSumArguments q = {p.sums,
                              tiles,
                              elements,
                              coefficients,
                              options.pixel,
                              options.hf,
                              options.dct,
                              result.loss.mutable_data_ptr<float>(),
                              result.terms.mutable_data_ptr<float>()};
  frequency_loss_sum_kernel<<<1, kLossSumThreads, kLossSumBytes, launch.stream()>>>(q);
  launch.finish();
}

std::tuple<Tensor, Tensor> frequency_loss(const Tensor& sr, const Tensor& hr, double pixel,
                                          double hf, double dct, bool squared) {
  const char* op = "espan::frequency_loss";
  check_frequency_loss(op, sr, hr);
  const Launch launch(op, sr);
  const LossResult result = empty_loss(sr);
  const Tensor dense_sr = rows_of(sr), dense_hr = rows_of(hr);
  for_loss_dtype(sr, [&](auto zero) {
    run<DeviceType<decltype(zero)>>(op, launch, dense_sr, dense_hr, nullptr, nullptr,
                                    {pixel, hf, dct, squared}, result);
  });
  return {result.loss, result.terms};
}

std::tuple<Tensor, Tensor, Tensor> frequency_loss_gradient(const Tensor& sr, const Tensor& hr,
                                                           const Tensor& scale, double pixel,
                                                           double hf, double dct, bool squared) {
  const char* op = "espan::frequency_loss_gradient";
  check_frequency_loss(op, sr, hr);
  check_scale(op, scale, sr);
  const Launch launch(op, sr);
  const LossResult result = empty_loss(sr);
  const Tensor dense_sr = rows_of(sr), dense_hr = rows_of(hr);
  Tensor grad = torch::stable::empty_like(sr);
  const Tensor rows = grad.is_contiguous() ? grad : torch::stable::new_empty(sr, sr.sizes());
  for_loss_dtype(sr, [&](auto zero) {
    run<DeviceType<decltype(zero)>>(op, launch, dense_sr, dense_hr, &rows, &scale,
                                    {pixel, hf, dct, squared}, result);
  });
  if (!grad.is_contiguous()) torch::stable::copy_(grad, rows);
  return {result.loss, result.terms, grad};
}

}  // namespace
}  // namespace espan::cuda

STABLE_TORCH_LIBRARY_IMPL(espan, CUDA, m) {
  m.impl("frequency_loss", TORCH_BOX(&espan::cuda::frequency_loss));
  m.impl("frequency_loss_gradient", TORCH_BOX(&espan::cuda::frequency_loss_gradient));
}
