// The head's kernel under the emulator, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#define ESPAN_EMULATOR
#include "cuda/head.cuh"
#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_head(const Buffer& image, uintptr_t first, const std::vector<int64_t>& strides, int type,
                const Buffer& mean, const Buffer& packed, const Buffer& features, int kernel,
                int batch, int height, int width, unsigned order) {
  cuda::HeadArguments p{};
  p.image = reinterpret_cast<const void*>(first);
  for (int i = 0; i < 4; ++i) p.stride[i] = strides[i];
  p.type = static_cast<cuda::Image>(type);
  p.mean = mean.pointer<const float>();
  p.features = features.pointer<uint16_t>();
  p.weights = packed.pointer<const uint4>();
  p.bias = reinterpret_cast<const float*>(p.weights + (kernel + 2) / 3 * ((3 * kernel + 15) / 16) *
                                                          (3 * 16 * S::P / 8));
  p.kernel = kernel;
  p.height = height;
  p.width = width;
  p.tiles_x = (width + S::kWidth - 1) / S::kWidth;
  p.tiles_y = (height + S::kHeight - 1) / S::kHeight;
  return launch(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order,
                {image.readable(), mean.readable(), packed.readable(), features.writable()},
                [&] { cuda::head_kernel<S>(p); });
}

template <class T>
void add_instances(py::list& list, bool bfloat16) {
  cuda::for_each_head<T>([&](auto s) {
    using S = decltype(s);
    py::dict instance;
    instance["bfloat16"] = bfloat16;
    instance["channels"] = S::P;
    instance["height"] = S::kHeight;
    instance["shared_bytes"] = S::kSharedBytes;
    instance["blocks_per_sm"] = S::kBlocksPerSm;
    instance["run"] = py::cpp_function(&run_head<S>);
    list.append(instance);
  });
}

}  // namespace

PYBIND11_MODULE(ESPAN_MODULE, m) {
  bind_buffer(m);
  py::list instances;
  add_instances<cuda::Float16>(instances, false);
  add_instances<cuda::BFloat16>(instances, true);
  m.attr("instances") = instances;
}

}  // namespace espan::emulator
