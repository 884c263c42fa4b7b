// The streamed block kernel under the emulator, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#define ESPAN_EMULATOR
#include "cuda/spab_hopper.cuh"
#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_spab(const Buffer& x, const Buffer& packed, const Buffer& y, const Buffer& activation,
                int convs, int batch, int height, int width, int rows, unsigned order) {
  cuda::SpabArguments p{};
  p.x = x.pointer<const uint16_t>();
  p.y = y.pointer<uint16_t>();
  p.activation = activation.pointer<uint16_t>();
  p.bias =
      reinterpret_cast<const float*>(packed.pointer<const uint4>() + convs * 9 * S::P * S::P / 8);
  p.weights = reinterpret_cast<const uint4*>(p.bias + convs * S::P);
  p.convs = convs;
  p.height = height;
  p.width = width;
  p.rows = rows;
  p.tiles_x = (width + S::kValid - 1) / S::kValid;
  p.tiles_y = (height + rows - 1) / rows;
  return launch(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order,
                {x.readable(), packed.readable(), y.writable(), activation.writable()},
                [&] { cuda::spab_stream_kernel<S>(p); });
}

template <class T>
void add_instances(py::list& list, bool bfloat16) {
  cuda::for_each_spab_stream<T>([&](auto s) {
    using S = decltype(s);
#ifdef ESPAN_ONE_TYPE
    if constexpr (S::P != 16) return;
#endif
    py::dict instance;
    instance["bfloat16"] = bfloat16;
    instance["channels"] = S::P;
    instance["shared_bytes"] = S::kSharedBytes;
    instance["run"] = py::cpp_function(&run_spab<S>);
    list.append(instance);
  });
}

}  // namespace

PYBIND11_MODULE(ESPAN_MODULE, m) {
  bind_buffer(m);
  py::list instances;
  add_instances<cuda::Float16>(instances, false);
#ifndef ESPAN_ONE_TYPE
  add_instances<cuda::BFloat16>(instances, true);
#endif
  m.attr("instances") = instances;
}

}  // namespace espan::emulator
