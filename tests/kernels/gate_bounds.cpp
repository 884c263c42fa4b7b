// Runs the gate's CPU kernels on arrays that end or begin next to an inaccessible page: a read or
// write of one byte outside of them ends the program with a signal.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#define ESPAN_KERNEL "gate_kernel.h"
#include "cpu/for_each_isa.h"

namespace {

const size_t kPage = sysconf(_SC_PAGESIZE);

// An array of n values between two inaccessible pages, adjacent to the upper or the lower one.
template <class T>
T* guarded(int64_t n, bool at_end) {
  const size_t inner = (n * sizeof(T) / kPage + 1) * kPage;
  char* base = static_cast<char*>(
      mmap(nullptr, inner + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED || mprotect(base + kPage, inner, PROT_READ | PROT_WRITE)) std::abort();
  T* array = reinterpret_cast<T*>(base + kPage + (at_end ? inner - n * sizeof(T) : 0));
  for (int64_t i = 0; i < n; ++i) array[i] = T(0.5f);
  return array;
}

template <class T>
void run(int64_t n, bool at_end) {
  T *g = guarded<T>(n, at_end), *o = guarded<T>(n, at_end), *x = guarded<T>(n, at_end);
  T *a = guarded<T>(n, at_end), *b = guarded<T>(n, at_end);
  ESPAN_ON_ISA(gate_forward(o, x, a, n));
  ESPAN_ON_ISA(gate_backward(g, o, x, a, b, n));
}

}  // namespace

int main(int, char** argv) {
  espan::cpu::select(argv[1]);
  for (int64_t n = 0; n < 70; ++n)
    for (bool at_end : {false, true}) {
      run<float>(n, at_end);
      run<espan::Half>(n, at_end);
      run<espan::BFloat16>(n, at_end);
    }
  std::puts("nothing outside was touched");
}
