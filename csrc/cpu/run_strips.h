// Processes the strips of an image one after another, each with all threads.
#pragma once

#include <algorithm>
#include <limits>
#include <mutex>

#include "parallel.h"
#include "schedule.h"

namespace espan::cpu {

// One thread per four rows: for fewer rows, waking a thread would cost more than it saves.
inline int64_t threads_for(int64_t height) {
  return std::min<int64_t>(torch::stable::get_num_threads(), (height + 3) / 4);
}

constexpr Range kEmptyRange{std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity(), 0};

inline void join(Range& all, const Range& part) {
  all.low = std::min(all.low, part.low);
  all.high = std::max(all.high, part.high);
  all.finite += part.finite;
}

// begin_strip(i) prepares strip i and returns the function run(thread, task, range) for its tasks.
template <class BeginStrip>
Range run_strips(const Plan& plan, int64_t threads, const BeginStrip& begin_strip) {
  Range all = kEmptyRange;
  std::mutex mutex;
  for (int64_t i = 0; i < plan.strips(); ++i) {
    const auto run = begin_strip(i);
    Schedule schedule(plan);
    parallel(threads, [&](int64_t thread) {
      Range range = kEmptyRange;
      for (Task task = schedule.start(); task.layer >= 0; task = schedule.next(task))
        run(thread, task, &range);
      const std::lock_guard<std::mutex> lock(mutex);
      join(all, range);
    });
  }
  return all;
}

}  // namespace espan::cpu
