// Compiles the kernel source named by ESPAN_KERNEL once for each instruction set, into the
// namespaces espan::cpu::portable, ::avx2 and ::avx512, and defines ESPAN_ON_ISA(call), which calls
// the one in use.  A kernel source must not include system headers; include them before this file.
// The linker may keep the copy of an inline function that was compiled in a target region, and use
// it on machines without that instruction set.
//
// Kernels are written once, with the kLanes-wide vectors of vec.h and the functions of vec_math.h.
#include <cstdint>

#include "../host_checks.h"
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// 16 bytes: the vectors of SSE2 and NEON, the baselines of x86-64 and AArch64.
#define ESPAN_LANES 4
namespace espan::cpu::portable {
#include "vec.h"
#include "vec_math.h"
#include ESPAN_KERNEL
}  // namespace espan::cpu::portable
#undef ESPAN_LANES

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define ESPAN_LANES 8
namespace espan::cpu::avx2 {
#include "vec.h"
#include "vec_math.h"
#include ESPAN_KERNEL
}  // namespace espan::cpu::avx2
#undef ESPAN_LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define ESPAN_LANES 16
namespace espan::cpu::avx512 {
#include "vec.h"
#include "vec_math.h"
#include ESPAN_KERNEL
}  // namespace espan::cpu::avx512
#undef ESPAN_LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define ESPAN_ON_ISA(...)                  \
  switch (::espan::cpu::isa()) {           \
    case ::espan::cpu::Isa::amx:           \
    case ::espan::cpu::Isa::avx512:        \
      ::espan::cpu::avx512::__VA_ARGS__;   \
      break;                               \
    case ::espan::cpu::Isa::avx2:          \
      ::espan::cpu::avx2::__VA_ARGS__;     \
      break;                               \
    case ::espan::cpu::Isa::portable:      \
      ::espan::cpu::portable::__VA_ARGS__; \
      break;                               \
  }

#else

#define ESPAN_ON_ISA(...) ::espan::cpu::portable::__VA_ARGS__

#endif
