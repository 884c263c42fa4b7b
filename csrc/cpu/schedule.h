// Hands out the work of one strip to however many threads come for it.
//
// A task is one group of rows of one layer.  Whoever is free takes the deepest layer that is ready:
// rows are used up as soon as possible, while they are in the cache, and few are waiting.  Nothing
// depends on how many threads come: one alone always finds a task.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "network_plan.h"

namespace espan::cpu {

struct Task {
  int layer;  // -1: all is done
  int64_t group;
};

class Schedule {
 public:
  explicit Schedule(const Plan& plan);

  // The first task of a thread, and each next one once `finished` is done.
  Task start();
  Task next(const Task& finished);

 private:
  struct Progress {
    int64_t started = 0;  // groups, from the top
    int64_t done = 0;     // all groups above this are
    std::vector<int64_t> done_early;
  };

  Task take(std::unique_lock<std::mutex>& lock);
  bool ready(int layer) const;
  bool has_rows(int layer, int64_t end) const;

  const Plan& plan_;
  std::vector<Progress> progress_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
};

}  // namespace espan::cpu
