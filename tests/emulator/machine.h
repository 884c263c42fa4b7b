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
// An error if it is not all in one of the arrays named, or not aligned, or may not be written.
void check_global(const void* address, size_t bytes, bool write);

void start_copy(uint32_t to, const void* from, bool take, uint32_t bytes);
void finish_copies();

// Hopper's barriers in shared memory.  A thread that waits for a phase which nobody can complete is an
// error, and so are more arrivals than a phase takes.
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
};
void start_product(const Product& product);
void finish_products();
// 16 bytes of shared memory for a product; an error if an ordinary store wrote them, which would
// need a proxy fence.
const unsigned char* product_operand(uint32_t address);
void mark_stored(uint32_t address);

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
// other numbers at random, changing at random places too.  What lands
// later lands at once for 0, as late as it may for 1.  Throws std::runtime_error on any error.
std::map<std::string, Wavefronts> run(unsigned blocks, unsigned threads, size_t shared_bytes,
                                      unsigned order, const std::vector<Array>& arrays,
                                      const std::function<void()>& kernel);

}  // namespace espan::emulator

namespace espan::cuda {
namespace emulator = espan::emulator;
}
