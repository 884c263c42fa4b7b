// What the emulator and the rehearsal's driver write into a CUtensorMap.
#pragma once

#include <cstdint>

namespace espan::emulator {

struct TensorMap {
  const unsigned char* data;
  uint64_t sizes[4], strides[3];  // channels, columns, rows, images; strides are in bytes
  uint32_t box[4];
};

}  // namespace espan::emulator
