#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace espan::cpu {
namespace {

bool runs_here(Isa isa) {
  if (isa == Isa::portable) return true;
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  // F16C is not asked for: every processor with AVX2 has it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa widest() {
  for (Isa isa : {Isa::avx512, Isa::avx2})
    if (runs_here(isa)) return isa;
  return Isa::portable;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{widest()};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

Isa isa() { return current().load(std::memory_order_relaxed); }

void select(const std::string& requested) {
  if (requested == "auto") {
    current() = widest();
    return;
  }
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (requested != name(isa)) continue;
    if (!runs_here(isa))
      throw std::invalid_argument("this machine cannot run the CPU path '" + requested +
                                  "'; the widest it can run is '" + name(widest()) + "'");
    current() = isa;
    return;
  }
  throw std::invalid_argument("there is no CPU path '" + requested +
                              "'; choose auto, avx512, avx2 or portable");
}

}  // namespace espan::cpu
