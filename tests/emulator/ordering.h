// Which accesses to shared memory come before which: by the order of a thread's own, by barriers,
// and by the fence between ordinary accesses and those of the asynchronous proxy (wgmma and bulk
// copies).  What a run in one order of the warps happens to get right is still an error here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace espan::emulator {

constexpr uint32_t kMostBarriers = 128;

// Of each thread, and then of the copies of each barrier: the time up to which their accesses are
// known to have come before, and to have been followed by a proxy fence.
struct Knowledge {
  std::vector<uint32_t> seen, fenced;
  void learn(const Knowledge& other);
};

class Ordering {
 public:
  void start(unsigned threads, size_t bytes);
  Knowledge nothing() const;

  // Accesses of at most 16 bytes that do not cross a multiple of 16; `ordinary` unless they are the
  // asynchronous proxy's.  These return what is wrong.
  std::string may_read(unsigned thread, uint32_t address, uint32_t bytes, bool ordinary) const;
  std::string read(unsigned thread, uint32_t address, uint32_t bytes);
  std::string write(unsigned thread, uint32_t address, uint32_t bytes);
  // A product's 16 bytes, when it is waited for.
  std::string finish_product_read(unsigned thread, uint32_t address, uint32_t started);
  // Of any length.
  std::string start_copy(unsigned thread, uint32_t address, uint32_t bytes, bool ordinary);
  // It landed, as the thread sees that waits for its own copies.
  void land(unsigned thread, uint32_t address, uint32_t bytes);
  // It landed, as those see who wait for this barrier, the n-th, who learn what is in `to`.
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
  struct Chunk {  // 16 bytes: the accesses that nothing has replaced
    std::vector<Access> writes, reads;
  };

  // Of `later`, in view of the earlier write or read.
  std::string after_write(const Access& later, const Access& write) const;
  std::string after_read(const Access& later, const Access& read) const;
  std::string add_write(const Access& write);
  void add_read(const Access& read);
  void landed(uint32_t address, uint32_t bytes, uint32_t agent, uint32_t time);

  uint32_t now_ = 0, threads_ = 0;  // agents from there on stand for the barriers' copies
  std::vector<Knowledge> known_;
  std::vector<Chunk> chunks_;
};

}  // namespace espan::emulator
