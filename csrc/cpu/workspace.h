// Memory for one call, kept for the next: fresh pages would cost a tenth of a 256x256 image's time.
#pragma once

#include <cstdint>
#include <memory>

namespace espan::cpu {

struct FreeMemory {
  void operator()(float* memory) const;
};

// At least this many floats, aligned to a cache line, holding anything.  Given back by
// return_workspace; at most one is kept, the largest.
struct Workspace {
  std::unique_ptr<float, FreeMemory> memory;
  int64_t floats = 0;
};

Workspace take_workspace(int64_t floats);
void return_workspace(Workspace workspace);

// What has not been touched of this memory comes as huge pages, where the system has them: for
// memory that will be written whole 512 times fewer page faults, each 1.4 to 2.6 us under a
// hypervisor.
void prefer_huge_pages(void* memory, int64_t bytes);

}  // namespace espan::cpu
