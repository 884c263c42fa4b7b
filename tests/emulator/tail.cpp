// The tail's kernel under the emulator.
#define ESPAN_EMULATOR
#include "cuda/tail.cuh"

#include "driver.h"

namespace espan::emulator {
namespace {

template <class S>
Result run_tail(Arguments& arguments) {
  const Buffer last = arguments.buffer();
  std::vector<Buffer> sides;
  while (arguments.buffers_left() > 3) sides.push_back(arguments.buffer());
  const Buffer packed = arguments.buffer(), image = arguments.buffer(), flag = arguments.buffer();
  const int type = arguments.number(), scale = arguments.number(), batch = arguments.number();
  const int height = arguments.number(), width = arguments.number();
  const int last_kernel = arguments.number();
  const unsigned order = arguments.number();
  cuda::TailArguments p{};
  std::vector<Array> arrays{last.readable(), packed.readable(), image.writable(), flag.writable()};
  p.last = last.pointer<const uint16_t>();
  p.side_count = static_cast<int>(sides.size());
  p.last_kernel = last_kernel;
  for (int i = 0; i < p.side_count; ++i) {
    p.sides[i] = sides[i].pointer<const uint16_t>();
    arrays.push_back(sides[i].readable());
  }
  p.weights = packed.pointer<const uint4>();
  p.bias = reinterpret_cast<const float*>(p.weights + S::weights(p.side_count, last_kernel));
  p.image = image.pointer<void>();
  p.flag = flag.pointer<int>();
  p.type = static_cast<cuda::Image>(type);
  p.scale = scale;
  p.height = height;
  p.width = width;
  p.tiles_x = (width + S::kWidth - 1) / S::kWidth;
  p.tiles_y = (height + S::kHeight - 1) / S::kHeight;
  return run(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order, arrays,
             [&] { cuda::tail_kernel<S>(p); });
}

template <class T>
void add_instances(std::vector<Instance>& list, bool bfloat16) {
  cuda::for_each_tail<T>([&](auto s) {
    using S = decltype(s);
    list.push_back({{{"bfloat16", bfloat16},
                     {"channels", S::P},
                     {"up_tiles", S::kUpTiles},
                     {"height", S::kHeight},
                     {"shared_bytes", S::kSharedBytes},
                     {"blocks_per_sm", 1}},
                    &run_tail<S>});
  });
}

}  // namespace

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = [] {
    std::vector<Instance> list;
    add_instances<cuda::Float16>(list, false);
    add_instances<cuda::BFloat16>(list, true);
    return list;
  }();
  return all;
}

}  // namespace espan::emulator
