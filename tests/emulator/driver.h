// What the modules that run one kernel each share: arrays given by Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "machine.h"

namespace py = pybind11;

namespace espan::emulator {

// Fewest possible and needed wavefronts of each kind of shared memory access.
using Result = std::map<std::string, std::pair<uint64_t, uint64_t>>;

// An array of a tensor, or none: the address is 0.
struct Buffer {
  uintptr_t address;
  size_t bytes;

  template <class T>
  T* pointer() const {
    return reinterpret_cast<T*>(address);
  }
  Array readable() const { return {address, address + bytes, false}; }
  Array writable() const { return {address, address + bytes, true}; }
};

inline void bind_buffer(py::module_& m) {
  py::class_<Buffer>(m, "Buffer", py::module_local()).def(py::init<uintptr_t, size_t>());
}

inline Result launch(unsigned blocks, unsigned threads, size_t shared_bytes, unsigned order,
                     const std::vector<Array>& arrays, const std::function<void()>& kernel) {
  Result result;
  for (const auto& [name, w] : run(blocks, threads, shared_bytes, order, arrays, kernel))
    result[name] = {w.fewest, w.needed};
  return result;
}

}  // namespace espan::emulator
