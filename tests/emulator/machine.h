// The emulated thread block: fibers, warp-wide operations, shared memory, and access checks.
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

// A lane's arguments to a warp-wide operation.
struct Lane {
  uint32_t address;
  void* data;
  bool keep;
};

using Action = void (*)(Lane*);

Index thread_index();
Index block_index();

// Waits until all 32 lanes have arrived; one of them then performs `action` for all.  All lanes
// must pass the same `name`.
void collective(const char* name, uint32_t address, void* data, bool keep, Action action);
void barrier();
void group_barrier(int id);  // of the 128 threads of a warpgroup

// A pointer to shared memory.  An error if the access is out of range or not aligned to its size.
unsigned char* shared(uint32_t address, uint32_t bytes);
// An access to shared memory by a lane of the running warp.  Also an error if no barrier orders it
// after the writes that it overlaps and the reads that it overwrites (ordering.h).
void load(unsigned lane, void* to, uint32_t from, uint32_t bytes);
void store(unsigned lane, uint32_t to, const void* from, uint32_t bytes);
// Orders everything that the warp's lanes have done before everything that they do next.
void join_warp();
void proxy_fence();
// An error if the access is not inside one of the arrays, misaligned, or a write to a read-only
// array.
void check_global(const void* address, size_t bytes, bool write);

void start_copy(uint32_t to, const void* from, bool take, uint32_t bytes);
void finish_copies();

// Hopper's barriers in shared memory.  It is an error if a thread waits for a phase that no thread
// can complete, or if more threads arrive than the phase expects.
void barrier_init(uint32_t barrier, uint32_t count);
void barrier_arrive(uint32_t barrier, uint32_t expected_bytes);
void barrier_wait(uint32_t barrier, uint32_t parity);
void copies_arrive(uint32_t barrier);
void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier);

// A part of a copy; zeros if `take` is false.
struct Copy {
  uint32_t to;
  const void* from;
  bool take;
  uint32_t bytes;
};
// Starts copies of 16 bytes each, which land together.
void bulk_copies(const std::vector<Copy>& copies, uint32_t barrier);

// The address of the eight values from k on of a column of B, or a row of A, in shared memory.
uint32_t operand(uint64_t descriptor, int line, int k);

// One thread's part of a product of its warpgroup.
struct Product {
  float* d;
  int values;
  const uint32_t* a;  // null if A is in shared memory
  uint64_t a_descriptor, b;
  bool accumulate;
  void (*now)(const Product* const*);  // computes the product of 128 threads
  uint32_t started = 0;

  template <class F>
  void each_operand(F f) const {
    for (int k = 0; k < 16; k += 8) {
      for (int n = 0; n < 2 * values; ++n) f(operand(b, n, k));
      for (int m = 0; m < 64 && a == nullptr; ++m) f(operand(a_descriptor, m, k));
    }
  }
};
void free_registers();
void start_product(Product product);
void commit_products();
void finish_products(size_t running);  // all but the last `running` groups

// Counts the wavefronts of a warp's access of `bytes` per lane.
void count(const char* name, const Lane* lanes, uint32_t bytes);

struct Wavefronts {
  uint64_t fewest = 0, needed = 0;
};

struct Array {
  uintptr_t begin, end;
  bool writable;
};

// Runs `blocks` blocks of `threads` threads.  `order` is the order of the warps: 0 ascending, 1
// descending, others are seeds of a random order with random preemption.  Asynchronous copies land
// immediately for 0 and as late as possible for 1.  Throws std::runtime_error on any error.
std::map<std::string, Wavefronts> run(unsigned blocks, unsigned threads, size_t shared_bytes,
                                      unsigned order, const std::vector<Array>& arrays,
                                      const std::function<void()>& kernel);

}  // namespace espan::emulator

namespace espan::cuda {
namespace emulator = espan::emulator;
}
