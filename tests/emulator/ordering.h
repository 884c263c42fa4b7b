// The happens-before order of accesses to shared memory, from program order, barriers, and the
// fence between ordinary accesses and those of the asynchronous proxy (wgmma and bulk copies).  An
// unordered access is an error even if a particular order of the warps gives the right result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace espan::emulator {

constexpr uint32_t kMostBarriers = 128;

// Vector clocks with an entry per thread, then one per barrier for its copies: the time up to which
// that agent's accesses are known to have happened, and to have been followed by a proxy fence.
struct Knowledge {
  std::vector<uint32_t> seen, fenced;
  void learn(const Knowledge& other);
};

class Ordering {
 public:
  void start(unsigned threads, size_t bytes);
  Knowledge nothing() const;

  // Accesses of at most 16 bytes that do not cross a multiple of 16.  `ordinary` is false for the
  // asynchronous proxy.  These functions return an error message, or an empty string.
  std::string may_read(unsigned thread, uint32_t address, uint32_t bytes, bool ordinary) const;
  std::string read(unsigned thread, uint32_t address, uint32_t bytes);
  std::string write(unsigned thread, uint32_t address, uint32_t bytes);
  // A product's read of 16 bytes, recorded at the wait.
  std::string finish_product_read(unsigned thread, uint32_t address, uint32_t started);
  // Copies may have any length.
  std::string start_copy(unsigned thread, uint32_t address, uint32_t bytes, bool ordinary);
  // A copy has landed for the thread that waits for its own copies.
  void land(unsigned thread, uint32_t address, uint32_t bytes);
  // A copy has landed for the threads that wait for the barrier with this index; waiting threads
  // acquire `to`.
  void land(unsigned barrier, Knowledge& to, uint32_t address, uint32_t bytes);

  void release(unsigned thread, Knowledge& to);
  void acquire(unsigned thread, const Knowledge& from) { known_[thread].learn(from); }
  void fence(unsigned thread);
  // A barrier of `count` threads.
  void join(unsigned first, unsigned count);

  uint32_t now() const { return now_; }

 private:
  struct Access {
    uint32_t agent, begin, end, time;
    bool ordinary;
  };
  struct Chunk {  // 16 bytes, and the accesses that no later write has replaced
    std::vector<Access> writes, reads;
  };

  // Checks `later` against an earlier write or read.
  std::string after_write(const Access& later, const Access& write) const;
  std::string after_read(const Access& later, const Access& read) const;
  std::string add_write(const Access& write);
  void add_read(const Access& read);
  void landed(uint32_t address, uint32_t bytes, uint32_t agent, uint32_t time);

  uint32_t now_ = 0, threads_ = 0;  // agents from threads_ on stand for the barriers' copies
  std::vector<Knowledge> known_;
  std::vector<Chunk> chunks_;
};

}  // namespace espan::emulator
