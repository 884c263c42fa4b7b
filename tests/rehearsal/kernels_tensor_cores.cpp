// The kernels of spab, head, tail and upsample on the emulator.
#define ESPAN_EMULATOR
#include "cuda/head_hopper.cuh"
#include "cuda/spab_hopper.cuh"
#include "cuda/spab_wide.cuh"
#include "cuda/tail_hopper.cuh"
#include "cuda/upsample_hopper.cuh"
//
#include "kernels.h"

namespace {

using namespace espan;

template <class... P>
void add(rehearsal::Kernels& kernels, void (*kernel)(P...)) {
  kernels.add(kernel, [kernel](const rehearsal::Launch& launch, const rehearsal::Arrays& arrays,
                               const P&... p) {
    std::vector<emulator::Array> allowed;
    for (const auto& [begin, end] : arrays) allowed.push_back({begin, end, true});
    emulator::run(launch.blocks, launch.threads, launch.shared_bytes, 0, allowed,
                  [&] { kernel(p...); });
  });
}

template <class T>
void add_all(rehearsal::Kernels& kernels) {
  cuda::for_each_spab<T>([&](auto s) { add(kernels, &cuda::spab_kernel<decltype(s)>); });
  cuda::for_each_head<T>([&](auto s) {
    add(kernels, &cuda::head_kernel<decltype(s)>);
    add(kernels, &cuda::head_pixels_kernel<decltype(s)>);
  });
  cuda::for_each_upsample<T>([&](auto s) { add(kernels, &cuda::upsample_kernel<decltype(s)>); });
  cuda::for_each_upsample_stream<T>(
      [&](auto s) { add(kernels, &cuda::upsample_stream_kernel<decltype(s)>); });
  cuda::for_each_spab_stream<T>(
      [&](auto s) { add(kernels, &cuda::spab_stream_kernel<decltype(s)>); });
  cuda::for_each_spab_wide<T>([&](auto s) { add(kernels, &cuda::spab_wide_kernel<decltype(s)>); });
  cuda::for_each_head_stream<T>(
      [&](auto s) { add(kernels, &cuda::head_stream_kernel<decltype(s)>); });
  cuda::for_each_tail_stream<T>(
      [&](auto s) { add(kernels, &cuda::tail_stream_kernel<decltype(s)>); });
  cuda::for_each_tail<T>([&](auto s) { add(kernels, &cuda::tail_kernel<decltype(s)>); });
}

rehearsal::Kernels kernels() {
  rehearsal::Kernels all;
  add_all<cuda::Float16>(all);
  add_all<cuda::BFloat16>(all);
  return all;
}

}  // namespace

ESPAN_REHEARSAL_KERNELS
