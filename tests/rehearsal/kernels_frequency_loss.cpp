// The kernels of frequency_loss on the emulator.
#include "../kernels/frequency_loss_cuda_on_cpu.cpp"
#include "kernels.h"

namespace {

using namespace espan;

template <class T, bool kGradient>
void add(rehearsal::Kernels& kernels) {
  const auto kernel = &cuda::frequency_loss_kernel<T, kGradient>;
  kernels.add(kernel, [kernel](const rehearsal::Launch& launch, const rehearsal::Arrays&,
                               const cuda::LossArguments<T>& p) {
    cuda::Accesses noted;
    cuda::accesses = &noted;
    emulator::run(launch.blocks, launch.threads, launch.shared_bytes, 0, {}, [&] {
      kernel(p);
      noted.finish();
    });
  });
}

rehearsal::Kernels kernels() {
  rehearsal::Kernels all;
  add<float, false>(all);
  add<float, true>(all);
  add<__half, false>(all);
  add<__half, true>(all);
  add<__nv_bfloat16, false>(all);
  add<__nv_bfloat16, true>(all);
  all.add(&cuda::frequency_loss_sum_kernel,
          [](const rehearsal::Launch& launch, const rehearsal::Arrays&,
             const cuda::LossSumArguments& p) {
            emulator::run(launch.blocks, launch.threads, launch.shared_bytes, 0, {},
                          [&] { cuda::frequency_loss_sum_kernel(p); });
          });
  return all;
}

}  // namespace

ESPAN_REHEARSAL_KERNELS
