// Which instruction set the CPU kernels use.  One binary serves every machine: each kernel is
// compiled for all of them (for_each_isa.h) and the choice is made when the library is loaded.
#pragma once

#include <string>

namespace espan::cpu {

enum class Isa { portable, avx2, avx512 };

const char* name(Isa isa);

// The one in use: the widest that this machine can run, unless select() was called.
Isa isa();

// "auto", or one by name.  Throws std::invalid_argument if this machine cannot run it.
void select(const std::string& requested);

}  // namespace espan::cpu
