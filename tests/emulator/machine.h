// The emulated block: fibers, the warps' rendezvous, shared memory, and what may be accessed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace espan::emulator {

struct Index {
  unsigned x;
};

// What a lane brings to a rendezvous of its warp.
struct Lane {
  uint32_t address;
  void* data;
  bool keep;
};

using Action = void (*)(Lane*);

Index thread_index();
Index block_index();

// Waits until all 32 lanes are here, then one of them does `action` for all.  `name` must be the
// same literal in each.
void collective(const char* name, uint32_t address, void* data, bool keep, Action action);
void barrier();

// Shared memory; an error if it is not all inside the block's, or not aligned to its size.
unsigned char* shared(uint32_t address, uint32_t bytes);
// A lane of the running warp accesses it; an error, too, if a write that it touches, or a read that
// it overwrites, does not come before by what barriers say (ordering.h).
void load(unsigned lane, void* to, uint32_t from, uint32_t bytes);
void store(unsigned lane, uint32_t to, const void* from, uint32_t bytes);
// What the warp's lanes did so far comes before all that they do next.
void join_warp();
void proxy_fence();
// An error if it is not all in one of the arrays named, or not aligned, or may not be written.
void check_global(const void* address, size_t bytes, bool write);

void start_copy(uint32_t to, const void* from, bool take, uint32_t bytes);
void finish_copies();

// Hopper's barriers in shared memory.  A thread that waits for a phase which nobody can complete is
// an error, and so are more arrivals than a phase takes.
void barrier_init(uint32_t barrier, uint32_t count);
void barrier_arrive(uint32_t barrier, uint32_t expected_bytes);
void barrier_wait(uint32_t barrier, uint32_t parity);
void copies_arrive(uint32_t barrier);
void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier);

// A thread's part of a product of its warpgroup.
struct Product {
  float* d;
  int values;
  const uint32_t* a;
  uint64_t b;
  bool accumulate;
  void (*now)(const Product* const*);  // computes those of 128 threads
  uint32_t started = 0;

  // Of eight values of column n of B, from k on.
  uint32_t operand(int n, int k) const {
    const uint32_t address = (b & 0x3fff) << 4, leading = (b >> 16 & 0x3fff) << 4;
    const uint32_t stride = (b >> 32 & 0x3fff) << 4;
    return address + k / 8 * leading + n / 8 * stride + n % 8 * 16;
  }
  template <class F>
  void each_operand(F f) const {
    for (int n = 0; n < 2 * values; ++n)
      for (int k = 0; k < 16; k += 8) f(operand(n, k));
  }
};
void free_registers();
void start_product(Product product);
void commit_products();
void finish_products();

// Counts the wavefronts of a warp's access of `bytes` per lane.
void count(const char* name, const Lane* lanes, uint32_t bytes);

struct Wavefronts {
  uint64_t fewest = 0, needed = 0;
};

struct Array {
  uintptr_t begin, end;
  bool writable;
};

// Runs `blocks` blocks of `threads` threads.  `order` says how warps take turns: 0 up, 1 down,
// other numbers at random, changing at random places too.  What may land at any time lands at once
// for 0, as late as it may for 1.  Throws std::runtime_error on any error.
std::map<std::string, Wavefronts> run(unsigned blocks, unsigned threads, size_t shared_bytes,
                                      unsigned order, const std::vector<Array>& arrays,
                                      const std::function<void()>& kernel);

}  // namespace espan::emulator

namespace espan::cuda {
namespace emulator = espan::emulator;
}
