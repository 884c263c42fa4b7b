// Which instruction set the CPU kernels use.  One binary serves every machine: each kernel is
// compiled for all of them (for_each_isa.h) and the choice is made when the library is loaded.
#pragma once

#include <string>

namespace espan::cpu {

// Amx is AVX-512 with a matrix unit for bf16: the whole network has a path of its own there, all
// else takes that of avx512.
enum class Isa { portable, avx2, avx512, amx };

const char* name(Isa isa);

// The one in use: the widest that this machine can run, unless select() was called.
Isa isa();

// "auto", or one by name.  Throws std::invalid_argument if this machine cannot run it.
void select(const std::string& requested);

}  // namespace espan::cpu
