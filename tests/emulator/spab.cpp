// The block kernel under the emulator, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#define ESPAN_EMULATOR
#include "cuda/spab.cuh"
#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_spab(const Buffer& x, const Buffer& packed, const Buffer& y, const Buffer& activation,
                int convs, int batch, int height, int width, unsigned order) {
  cuda::SpabArguments p{};
  p.x = x.pointer<const uint16_t>();
  p.y = y.pointer<uint16_t>();
  p.activation = activation.pointer<uint16_t>();
  p.weights = packed.pointer<const uint4>();
  p.bias = reinterpret_cast<const float*>(p.weights + convs * S::kWeights);
  p.convs = convs;
  p.height = height;
  p.width = width;
  p.tiles_x = (width + S::kWidth - 1) / S::kWidth;
  p.tiles_y = (height + S::kHeight - 1) / S::kHeight;
  return launch(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order,
                {x.readable(), packed.readable(), y.writable(), activation.writable()},
                [&] { cuda::spab_kernel<S>(p); });
}

// The instances as a list: (bfloat16, P, height of a tile).
template <class T, class F>
void each(F f) {
#ifdef ESPAN_ONE_INSTANCE
  f(cuda::Spab<T, 32, 16, 2, 1, 2>{});
#else
  cuda::for_each_spab<T>(f);
#endif
}

template <class T>
void add_instances(py::list& list, bool bfloat16) {
  each<T>([&](auto s) {
    using S = decltype(s);
    py::dict instance;
    instance["bfloat16"] = bfloat16;
    instance["channels"] = S::P;
    instance["height"] = S::kHeight;
    instance["warps"] = S::kThreads / 32;
    instance["shared_bytes"] = S::kSharedBytes;
    instance["blocks_per_sm"] = S::kBlocksPerSm;
    instance["run"] = py::cpp_function(&run_spab<S>);
    list.append(instance);
  });
}

}  // namespace

PYBIND11_MODULE(ESPAN_MODULE, m) {
  bind_buffer(m);
  py::list instances;
  add_instances<cuda::Float16>(instances, false);
#ifndef ESPAN_ONE_INSTANCE
  add_instances<cuda::BFloat16>(instances, true);
#endif
  m.attr("instances") = instances;
}

}  // namespace espan::emulator
