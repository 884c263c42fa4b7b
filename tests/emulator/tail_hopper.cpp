// The tail's streamed kernel under the emulator.
#define ESPAN_EMULATOR
#include "cuda/tail_hopper.cuh"

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
  const int height = arguments.number(), width = arguments.number(), rows = arguments.number();
  const unsigned order = arguments.number();
  cuda::TailArguments p{};
  std::vector<Array> arrays{last.readable(), packed.readable(), image.writable(), flag.writable()};
  p.last = last.pointer<const uint16_t>();
  p.side_count = static_cast<int>(sides.size());
  for (int i = 0; i < p.side_count; ++i) {
    p.sides[i] = sides[i].pointer<const uint16_t>();
    arrays.push_back(sides[i].readable());
  }
  constexpr int kTaps = S::kLastKernel * S::kLastKernel;
  p.last_kernel = S::kLastKernel;
  p.bias = reinterpret_cast<const float*>(packed.pointer<const uint4>() +
                                          (kTaps + S::kSides) * S::P * S::P / 8 +
                                          9 * S::P * S::kUpTiles);
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
  return run(batch * p.tiles_x * p.tiles_y, S::kThreads, S::kSharedBytes, order, arrays,
             [&] { cuda::tail_stream_kernel<S>(p); });
}

template <class T>
void add_instances(std::vector<Instance>& list, bool bfloat16) {
  const auto add = [&](auto s) {
    using S = decltype(s);
    list.push_back({{{"bfloat16", bfloat16},
                     {"channels", S::P},
                     {"up_tiles", S::kUpTiles},
                     {"sides", S::kSides},
                     {"last_kernel", S::kLastKernel},
                     {"shared_bytes", S::kSharedBytes}},
                    &run_tail<S>});
  };
#ifdef ESPAN_ONE_TYPE
  add(cuda::TailStream<T, 16, 2, 2, 1>{});
#else
  cuda::for_each_tail_stream<T>(add);
#endif
}

}  // namespace

const std::vector<Instance>& instances() {
  static const std::vector<Instance> all = [] {
    std::vector<Instance> list;
    add_instances<cuda::Float16>(list, false);
#ifndef ESPAN_ONE_TYPE
    add_instances<cuda::BFloat16>(list, true);
#endif
    return list;
  }();
  return all;
}

}  // namespace espan::emulator
