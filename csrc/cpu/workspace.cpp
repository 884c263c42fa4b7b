#include "workspace.h"

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace espan::cpu {
namespace {

constexpr int64_t kHugePage = 2 << 20;

std::mutex mutex;
Workspace kept;

}  // namespace

void FreeMemory::operator()(float* memory) const { std::free(memory); }

Workspace take_workspace(int64_t floats) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (kept.floats >= floats) return std::exchange(kept, {});
  }
  const int64_t bytes = (floats * 4 + kHugePage - 1) / kHugePage * kHugePage;
  float* memory = static_cast<float*>(std::aligned_alloc(kHugePage, bytes));
  if (!memory) throw std::bad_alloc();
  prefer_huge_pages(memory, bytes);  // rows are far apart, so small pages would miss the TLB
  return {std::unique_ptr<float, FreeMemory>(memory), bytes / 4};
}

void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (first + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (first + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void return_workspace(Workspace workspace) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (workspace.floats > kept.floats) std::swap(kept, workspace);
}

}  // namespace espan::cpu
