// Shared by the modules that each run one kernel.  build.py calls them through a C interface: the
// headers of a Python binding would take longer to compile than the kernels.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"

namespace espan::emulator {

// The data of a tensor; the address is 0 if there is none.
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

// The arguments of a call: buffers and numbers, each read in order.
class Arguments {
 public:
  Arguments(const Buffer* buffers, int buffer_count, const int64_t* numbers)
      : buffers_(buffers), end_(buffers + buffer_count), numbers_(numbers) {}
  Buffer buffer() { return *buffers_++; }
  int buffers_left() const { return static_cast<int>(end_ - buffers_); }
  int64_t number() { return *numbers_++; }

 private:
  const Buffer *buffers_, *end_;
  const int64_t* numbers_;
};

using Result = std::map<std::string, Wavefronts>;

struct Instance {
  std::vector<std::pair<const char*, int>> properties;
  Result (*run)(Arguments&);
};

// Defined by each module.
const std::vector<Instance>& instances();

}  // namespace espan::emulator

extern "C" {

// The properties of each instance, as JSON.
const char* espan_instances() {
  static std::string text;
  text = "[";
  for (const auto& instance : espan::emulator::instances()) {
    text += text.size() > 1 ? ", {" : "{";
    for (const auto& [name, value] : instance.properties)
      text +=
          (text.back() == '{' ? "\"" : ", \"") + std::string(name) + "\": " + std::to_string(value);
    text += "}";
  }
  text += "]";
  return text.c_str();
}

// Returns, for each kind of shared memory access, the fewest possible and the actual number of
// wavefronts, as JSON; or an exclamation mark followed by an error.
const char* espan_run(int instance, const espan::emulator::Buffer* buffers, int buffer_count,
                      const int64_t* numbers) {
  static std::string text;
  try {
    espan::emulator::Arguments arguments(buffers, buffer_count, numbers);
    text = "{";
    for (const auto& [name, w] : espan::emulator::instances()[instance].run(arguments))
      text += (text.size() > 1 ? ", \"" : "\"") + name + "\": [" + std::to_string(w.fewest) + ", " +
              std::to_string(w.needed) + "]";
    text += "}";
  } catch (const std::runtime_error& error) {
    text = std::string("!") + error.what();
  }
  return text.c_str();
}

}  // extern "C"
