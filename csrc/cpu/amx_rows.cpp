// The row kernels of the AMX path, compiled for the instruction sets that come with AMX.  On other
// architectures they are empty and never called.
#include "amx_rows.h"

#include <algorithm>
#include <type_traits>
#include <utility>

#include "../host_checks.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif
#define ESPAN_LANES 16
#define ESPAN_KERNEL "amx_kernel.h"
namespace espan::cpu::amx {
namespace {
#include "vec.h"
#include "vec_math.h"
#include ESPAN_KERNEL
}  // namespace

void run(const FeatureRow* rows, int64_t count, float* scratch) {
  const Unit unit;
  if (rows->both)
    feature_rows<true>(rows, count, scratch);
  else
    feature_rows<false>(rows, count, scratch);
}

void run(const SumRow* rows, int64_t count, float* scratch) {
  const Unit unit;
  sum_rows(rows, count, scratch);
}

void run(const ImageRow* rows, int64_t count, float* scratch) {
  const Unit unit;
  if (rows->image.type == Element::uint8)
    image_rows<uint8_t>(rows, count, scratch);
  else
    image_rows<float>(rows, count, scratch);
}

void split(const float* from, int64_t n, char* high, char* low) { split_row(from, n, high, low); }
}  // namespace espan::cpu::amx
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#else

namespace espan::cpu::amx {
void run(const FeatureRow*, int64_t, float*) {}
void run(const SumRow*, int64_t, float*) {}
void run(const ImageRow*, int64_t, float*) {}
void split(const float*, int64_t, char*, char*) {}
}  // namespace espan::cpu::amx

#endif

namespace espan::cpu::amx {

// The sums of two blocks and one block in image order, or the sums of two blocks and the features.
int64_t scratch_size(int64_t groups) { return 2 * block_size(groups) + features_size(groups); }

}  // namespace espan::cpu::amx
