#include "schedule.h"

#include <algorithm>

namespace espan::cpu {

Schedule::Schedule(const Plan& plan) : plan_(plan), progress_(plan.layers().size()) {}

Task Schedule::start() {
  std::unique_lock<std::mutex> lock(mutex_);
  return take(lock);
}

Task Schedule::next(const Task& finished) {
  std::unique_lock<std::mutex> lock(mutex_);
  Progress& p = progress_[finished.layer];
  p.done_early.push_back(finished.group);
  for (auto found = p.done_early.end();
       (found = std::find(p.done_early.begin(), p.done_early.end(), p.done)) != p.done_early.end();
       ++p.done)
    p.done_early.erase(found);
  if (waiting_) changed_.notify_all();
  return take(lock);
}

Task Schedule::take(std::unique_lock<std::mutex>& lock) {
  for (;;) {
    for (int layer = static_cast<int>(progress_.size()) - 1; layer >= 0; --layer)
      if (ready(layer)) return {layer, progress_[layer].started++};
    if (progress_.back().started == plan_.groups()) return {-1, 0};
    ++waiting_;
    changed_.wait(lock);
    --waiting_;
  }
}

bool Schedule::ready(int layer) const {
  const Layer& l = plan_.layers()[layer];
  const int64_t group = progress_[layer].started;
  if (group == plan_.groups()) return false;
  const int64_t end = plan_.first_row(l, group + 1);
  if (l.input >= 0 && !has_rows(l.input, end + l.reach())) return false;
  if (l.other >= 0 && !has_rows(l.other, end + l.reach_from(l.other))) return false;
  // All readers must be past the rows that it overwrites.
  for (int index : l.readers) {
    const Layer& reader = plan_.layers()[index];
    const int64_t done = progress_[index].done;
    const int64_t reach = reader.reach_from(layer);
    if (done < plan_.groups() && plan_.first_row(reader, done) - reach < end - l.ring) return false;
  }
  return true;
}

// Whether all rows of a layer above `end`, or all rows of the image, are done.
bool Schedule::has_rows(int layer, int64_t end) const {
  const int64_t done = plan_.first_row(plan_.layers()[layer], progress_[layer].done);
  return done >= end || done >= plan_.height();
}

}  // namespace espan::cpu
