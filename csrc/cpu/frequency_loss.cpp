// The frequency-aware loss on the CPU: checks, tiling, threading and summation around
// frequency_loss_kernel.h.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>
#include <vector>

#include "../frequency_loss_checks.h"
#include "frequency_loss_tile.h"

#define ESPAN_KERNEL "frequency_loss_kernel.h"
#include "for_each_isa.h"

namespace espan::cpu {
namespace {

template <class T>
void tile(const T* sr, const T* hr, T* grad, const LossTile& t, const LossWeights& w,
          LossScratch& scratch, double* sums) {
  ESPAN_ON_ISA(frequency_loss_tile(sr, hr, grad, t, w, scratch, sums));
}

// Fills `result` and, if `grad` is not null, the gradient.
template <class T>
void run(const Tensor& sr, const Tensor& hr, T* grad, double scale, const LossOptions& options,
         const LossResult& result) {
  const T *psr = sr.const_data_ptr<T>(), *phr = hr.const_data_ptr<T>();
  const Axis vertical = cut(sr.size(2), LossScratch::kRowBlocks);
  const Axis horizontal = cut(sr.size(3), LossScratch::kColumnBlocks);
  const int64_t planes = sr.size(0) * sr.size(1), pixels = sr.size(2) * sr.size(3);
  const int64_t per_plane = static_cast<int64_t>(vertical.tiles) * horizontal.tiles;
  const double elements = static_cast<double>(sr.numel());
  const double coefficients = 64.0 * planes * vertical.blocks * horizontal.blocks;
  const LossWeights weights = options.weights(elements, coefficients, scale);

  // Each tile has its own sums, added in order, so the result does not depend on the threads.
  std::vector<double> sums(3 * planes * per_plane);
  // Waking a thread costs about 5 us; a tile of 128 x 32 takes 10.
  torch::stable::parallel_for(0, planes * per_plane, 2, [&](int64_t begin, int64_t end) {
    const auto scratch = std::make_unique<LossScratch>();
    for (int64_t i = begin; i < end; ++i) {
      const int64_t plane = i / per_plane;
      const int row = static_cast<int>(i % per_plane / horizontal.tiles);
      const int column = static_cast<int>(i % horizontal.tiles);
      const int y = vertical.begin(row), x = horizontal.begin(column);
      const LossTile t = {vertical.size,
                          horizontal.size,
                          y,
                          x,
                          vertical.begin(row + 1) - y,
                          horizontal.begin(column + 1) - x};
      tile(psr + plane * pixels, phr + plane * pixels, grad ? grad + plane * pixels : nullptr, t,
           weights, *scratch, sums.data() + 3 * i);
    }
  });

  double terms[3] = {};
  for (size_t i = 0; i < sums.size(); ++i) terms[i % 3] += sums[i];
  terms[0] /= elements;
  terms[1] /= elements;
  terms[2] /= coefficients;
  float* out = result.terms.mutable_data_ptr<float>();
  for (int i = 0; i < 3; ++i) out[i] = static_cast<float>(terms[i]);
  *result.loss.mutable_data_ptr<float>() =
      static_cast<float>(options.pixel * terms[0] + options.hf * terms[1] + options.dct * terms[2]);
}

std::tuple<Tensor, Tensor> frequency_loss(const Tensor& sr, const Tensor& hr, double pixel,
                                          double hf, double dct, bool squared) {
  check_frequency_loss("espan::frequency_loss", sr, hr);
  const LossResult result = empty_loss(sr);
  const Tensor dense_sr = rows_of(sr), dense_hr = rows_of(hr);
  for_loss_dtype(sr, [&](auto zero) {
    run<decltype(zero)>(dense_sr, dense_hr, nullptr, 1.0, {pixel, hf, dct, squared}, result);
  });
  return {result.loss, result.terms};
}

std::tuple<Tensor, Tensor, Tensor> frequency_loss_gradient(const Tensor& sr, const Tensor& hr,
                                                           const Tensor& scale, double pixel,
                                                           double hf, double dct, bool squared) {
  check_frequency_loss("espan::frequency_loss_gradient", sr, hr);
  check_scale("espan::frequency_loss_gradient", scale, sr);
  const LossResult result = empty_loss(sr);
  const Tensor dense_sr = rows_of(sr), dense_hr = rows_of(hr);
  Tensor grad = torch::stable::empty_like(sr);
  Tensor rows = grad.is_contiguous() ? grad : torch::stable::new_empty(sr, sr.sizes());
  for_loss_dtype(sr, [&](auto zero) {
    using T = decltype(zero);
    run<T>(dense_sr, dense_hr, rows.mutable_data_ptr<T>(), *scale.const_data_ptr<float>(),
           {pixel, hf, dct, squared}, result);
  });
  if (!grad.is_contiguous()) torch::stable::copy_(grad, rows);
  return {result.loss, result.terms, grad};
}

}  // namespace
}  // namespace espan::cpu

STABLE_TORCH_LIBRARY_IMPL(espan, CPU, m) {
  m.impl("frequency_loss", TORCH_BOX(&espan::cpu::frequency_loss));
  m.impl("frequency_loss_gradient", TORCH_BOX(&espan::cpu::frequency_loss_gradient));
}
