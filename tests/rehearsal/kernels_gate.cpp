// The kernels of gate and its gradient, thread by thread.
#include "../kernels/gate_cuda_on_cpu.cpp"
#include "kernels.h"

namespace {

using namespace espan;

template <class... P>
void add(rehearsal::Kernels& kernels, void (*kernel)(P...)) {
  kernels.add(kernel,
              [kernel](const rehearsal::Launch& on, const rehearsal::Arrays&, const P&... p) {
                launch(on.blocks, on.threads, [&] { kernel(p...); });
              });
}

rehearsal::Kernels kernels() {
  rehearsal::Kernels all;
  const auto add_dtype = [&](auto zero) {
    add(all, &cuda::gate_forward_kernel<decltype(zero)>);
    add(all, &cuda::gate_backward_kernel<decltype(zero)>);
  };
  add_dtype(float());
  add_dtype(double());
  add_dtype(__half());
  add_dtype(__nv_bfloat16());
  return all;
}

}  // namespace

ESPAN_REHEARSAL_KERNELS
