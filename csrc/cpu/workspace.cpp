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

struct Free {
  void operator()(float* memory) const { std::free(memory); }
};

std::mutex mutex;
std::unique_ptr<float, Free> kept;
int64_t kept_floats = 0;

}  // namespace

void GiveBack::operator()(float* memory) const {
  std::unique_ptr<float, Free> other(memory);
  const std::lock_guard<std::mutex> lock(mutex);
  if (floats <= kept_floats) return;
  std::swap(kept, other);
  kept_floats = floats;
}

Workspace take_workspace(int64_t floats) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (kept_floats >= floats)
      return Workspace(kept.release(), GiveBack{std::exchange(kept_floats, 0)});
  }
  const int64_t bytes = (floats * 4 + kHugePage - 1) / kHugePage * kHugePage;
  float* memory = static_cast<float*>(std::aligned_alloc(kHugePage, bytes));
  if (!memory) throw std::bad_alloc();
  prefer_huge_pages(memory, bytes);  // rows are far apart, so small pages would miss the TLB
  return Workspace(memory, GiveBack{bytes / 4});
}

void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (first + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (first + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace espan::cpu
