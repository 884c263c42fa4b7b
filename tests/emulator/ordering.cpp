#include "ordering.h"

#include <algorithm>
#include <limits>

#pragma GCC optimize("O3")  // every barrier merges the clocks of up to 512 threads

namespace espan::emulator {
namespace {

constexpr uint32_t kUnderWay = std::numeric_limits<uint32_t>::max();

void maximum(std::vector<uint32_t>& to, const std::vector<uint32_t>& from) {
  for (size_t i = 0; i < to.size(); ++i) to[i] = std::max(to[i], from[i]);
}

template <class Access>
bool overlap(const Access& a, const Access& b) {
  return a.begin < b.end && b.begin < a.end;
}

}  // namespace

void Knowledge::learn(const Knowledge& other) {
  maximum(seen, other.seen);
  maximum(fenced, other.fenced);
}

Knowledge Ordering::nothing() const {
  const std::vector<uint32_t> zeros(threads_ + kMostBarriers);
  return {zeros, zeros};
}

void Ordering::start(unsigned threads, size_t bytes) {
  now_ = 0;
  threads_ = threads;
  known_.assign(threads, nothing());
  chunks_.resize(bytes / 16 + 1);
  for (Chunk& c : chunks_) {
    c.writes.clear();
    c.reads.clear();
  }
}

std::string Ordering::after_write(const Access& later, const Access& write) const {
  if (!overlap(later, write)) return "";
  if (write.time == kUnderWay) return "an access to shared memory before a copy to it has landed";
  const Knowledge& known = known_[later.agent];
  if (write.agent != later.agent && known.seen[write.agent] < write.time)
    return "an access to shared memory that " +
           (write.agent >= threads_ ? "a copy" : "thread " + std::to_string(write.agent)) +
           " wrote, with no barrier between";
  if (write.ordinary && !later.ordinary && known.fenced[write.agent] < write.time)
    return "the asynchronous proxy's access to what was written without it, with no proxy fence "
           "between";
  return "";
}

std::string Ordering::after_read(const Access& later, const Access& read) const {
  if (!overlap(later, read) || read.agent == later.agent) return "";
  if (known_[later.agent].seen[read.agent] >= read.time) return "";
  return "shared memory overwritten that thread " + std::to_string(read.agent) +
         " reads, with no barrier between";
}

void Ordering::add_read(const Access& read) {
  auto& reads = chunks_[read.begin / 16].reads;
  for (Access& r : reads)
    if (r.agent == read.agent && r.begin == read.begin && r.end == read.end) {
      r.time = read.time;
      return;
    }
  reads.push_back(read);
}

std::string Ordering::add_write(const Access& write) {
  Chunk& chunk = chunks_[write.begin / 16];
  for (const Access& w : chunk.writes)
    if (std::string wrong = after_write(write, w); !wrong.empty()) return wrong;
  for (const Access& r : chunk.reads)
    if (std::string wrong = after_read(write, r); !wrong.empty()) return wrong;
  const auto replaced = [&](const Access& a) {
    return write.begin <= a.begin && a.end <= write.end;
  };
  for (auto* all : {&chunk.writes, &chunk.reads})
    all->erase(std::remove_if(all->begin(), all->end(), replaced), all->end());
  chunk.writes.push_back(write);
  return "";
}

std::string Ordering::may_read(unsigned thread, uint32_t address, uint32_t bytes,
                               bool ordinary) const {
  const Access read{thread, address, address + bytes, now_ + 1, ordinary};
  for (const Access& w : chunks_[address / 16].writes)
    if (std::string wrong = after_write(read, w); !wrong.empty()) return wrong;
  return "";
}

std::string Ordering::read(unsigned thread, uint32_t address, uint32_t bytes) {
  add_read({thread, address, address + bytes, now_ + 1, true});
  return may_read(thread, address, bytes, true);
}

std::string Ordering::write(unsigned thread, uint32_t address, uint32_t bytes) {
  return add_write({thread, address, address + bytes, now_ + 1, true});
}

std::string Ordering::finish_product_read(unsigned thread, uint32_t address, uint32_t started) {
  for (const Access& w : chunks_[address / 16].writes)
    if (w.time > started) return "shared memory overwritten that a product reads";
  add_read({thread, address, address + 16, now_ + 1, false});
  return "";
}

std::string Ordering::start_copy(unsigned thread, uint32_t address, uint32_t bytes, bool ordinary) {
  for (uint32_t at = address; at < address + bytes; at += 16) {
    const uint32_t end = std::min(at + 16, address + bytes);
    if (std::string wrong = add_write({thread, at, end, kUnderWay, ordinary}); !wrong.empty())
      return wrong;
  }
  return "";
}

void Ordering::landed(uint32_t address, uint32_t bytes, uint32_t agent, uint32_t time) {
  for (uint32_t at = address; at < address + bytes; at += 16)
    for (Access& w : chunks_[at / 16].writes)
      if (w.time == kUnderWay && w.begin >= at && w.begin < address + bytes) {
        w.agent = agent;
        w.time = time;
      }
}

void Ordering::land(unsigned thread, uint32_t address, uint32_t bytes) {
  landed(address, bytes, thread, now_ + 1);
}

void Ordering::land(unsigned barrier, Knowledge& to, uint32_t address, uint32_t bytes) {
  landed(address, bytes, threads_ + barrier, ++now_);
  to.seen[threads_ + barrier] = now_;
}

void Ordering::release(unsigned thread, Knowledge& to) {
  known_[thread].seen[thread] = ++now_;
  to.learn(known_[thread]);
}

void Ordering::fence(unsigned thread) {
  Knowledge& known = known_[thread];
  known.seen[thread] = ++now_;
  maximum(known.fenced, known.seen);
}

void Ordering::join(unsigned first, unsigned count) {
  Knowledge all = nothing();
  for (unsigned t = first; t < first + count; ++t) release(t, all);
  for (unsigned t = first; t < first + count; ++t) acquire(t, all);
}

}  // namespace espan::emulator
