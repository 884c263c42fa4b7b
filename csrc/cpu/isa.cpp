#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace espan::cpu {
namespace {

// Whether the processor has AVX-512's conversions and products of bf16.
bool has_avx512_bf16() {
#if defined(__x86_64__)
  unsigned a, b, c, d;
  constexpr unsigned kBFloat16 = 1u << 5;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || a < 1) return false;
  __get_cpuid_count(7, 1, &a, &b, &c, &d);
  return (a & kBFloat16) != 0;
#else
  return false;
#endif
}

// Whether the processor has AMX tiles, bf16 products and AVX-512 bf16 conversions, and the Linux
// kernel permits tiles.  They add 8 KB to a thread's state, so each process must request them.
bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned kTiles = 1u << 24, kProducts = 1u << 22;
  if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!(d & kTiles) || !(d & kProducts)) return false;
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

bool runs_here(Isa isa) {
  if (isa == Isa::portable) return true;
#if defined(__x86_64__)
  // __builtin_cpu_supports also checks that the operating system saves the wide registers.
  // F16C needs no check: every processor with AVX2 has it.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  return avx512 && (isa == Isa::avx512 || has_amx());
#else
  return false;
#endif
}

Isa widest() {
  for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2})
    if (runs_here(isa)) return isa;
  return Isa::portable;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{widest()};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::amx:
      return "amx";
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::portable:
      break;
  }
  return "portable";
}

Isa isa() { return current().load(std::memory_order_relaxed); }

bool has_bfloat16() {
  static const bool avx512_bf16 = has_avx512_bf16();
  return isa() == Isa::amx || (isa() == Isa::avx512 && avx512_bf16);
}

void select(const std::string& requested) {
  if (requested == "auto") {
    current() = widest();
    return;
  }
  for (Isa isa : {Isa::amx, Isa::avx512, Isa::avx2, Isa::portable}) {
    if (requested != name(isa)) continue;
    if (!runs_here(isa))
      throw std::invalid_argument("this machine cannot run the CPU path '" + requested +
                                  "'; the widest it can run is '" + name(widest()) + "'");
    current() = isa;
    return;
  }
  throw std::invalid_argument("there is no CPU path '" + requested +
                              "'; choose auto, amx, avx512, avx2 or portable");
}

}  // namespace espan::cpu
