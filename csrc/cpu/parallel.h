// Work in PyTorch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

namespace espan::cpu {

// Calls run(0) to run(count - 1), in up to `count` threads.  There may be fewer, each with several
// calls: in a parallel region of the caller, or with OMP_DYNAMIC or OMP_THREAD_LIMIT.
template <class Run>
void parallel(int64_t count, const Run& run) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(i);
  });
}

}  // namespace espan::cpu
