// The streamed tail kernel under the emulator, for Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#define ESPAN_EMULATOR
#include "cuda/tail_hopper.cuh"
#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_tail(const Buffer& last, const std::vector<Buffer>& sides, const Buffer& packed,
                const Buffer& image, const Buffer& flag, int type, int scale, int batch, int height,
                int width, int rows, unsigned order) {
  cuda::TailArguments p{};
  std::vector<Array> arrays{last.readable(), packed.readable(), image.writable(), flag.writable()};
  p.last = last.pointer<const uint16_t>();
  p.side_count = static_cast<int>(sides.size());
  for (int i = 0; i < p.side_count; ++i) {
    p.sides[i] = sides[i].pointer<const uint16_t>();
    arrays.push_back(sides[i].readable());
  }
  p.bias = reinterpret_cast<const float*>(
      packed.pointer<const uint4>() + (9 + S::kSides) * S::P * S::P / 8 + 9 * S::P * S::kUpTiles);
  p.weights = reinterpret_cast<const uint4*>(p.bias + S::P + 8 * S::kUpTiles);
  p.image = image.pointer<void>();
  p.flag = flag.pointer<int>();
  p.type = static_cast<cuda::Image>(type);
  p.scale = scale;
  p.height = height;
  p.width = width;
  p.rows = rows;
  p.tiles_x = (width + S::kValid - 1) / S::kValid;
  p.tiles_y = (height + rows - 1) / rows;
  return launch(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order, arrays,
                [&] { cuda::tail_stream_kernel<S>(p); });
}

template <class T>
void add_instances(py::list& list, bool bfloat16) {
  cuda::for_each_tail_stream<T>([&](auto s) {
    using S = decltype(s);
    py::dict instance;
    instance["bfloat16"] = bfloat16;
    instance["channels"] = S::P;
    instance["up_tiles"] = S::kUpTiles;
    instance["sides"] = S::kSides;
    instance["shared_bytes"] = S::kSharedBytes;
    instance["run"] = py::cpp_function(&run_tail<S>);
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
