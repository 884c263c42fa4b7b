// Distributes the work of one strip among any number of threads.
//
// A task is one group of rows of one layer.  A free thread takes the deepest layer that is ready,
// so that rows are consumed while they are in the cache, and few are pending.  One thread alone
// always finds a task.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "network_plan.h"

namespace espan::cpu {

struct Task {
  int layer;  // -1 if all tasks are done
  int64_t group;
};

class Schedule {
 public:
  explicit Schedule(const Plan& plan);

  // The first task of a thread, and the next one after `finished`.
  Task start();
  Task next(const Task& finished);

 private:
  struct Progress {
    int64_t started = 0;  // the number of groups started, from the top
    int64_t done = 0;     // all groups before this one are done
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
