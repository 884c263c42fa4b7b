// The instruction set that the CPU kernels use.  Each kernel is compiled for all of them
// (for_each_isa.h), and the choice is made when the library is loaded.
#pragma once

#include <string>

namespace espan::cpu {

// `amx` is AVX-512 with a matrix unit for bf16.  The `network` op has its own AMX kernels; all
// other ops use the avx512 kernels.
enum class Isa { portable, avx2, avx512, amx };

const char* name(Isa isa);

// The path in use: the widest that this machine can run, unless select() was called.
Isa isa();

// Whether the path in use multiplies bf16 values: `amx`, and `avx512` if the processor has
// avx512_bf16.
bool has_bfloat16();

// Selects "auto" or a path by name.  Throws std::invalid_argument if this machine cannot run it.
void select(const std::string& requested);

}  // namespace espan::cpu
