// The interface between the files of kernels and the runtime: a launch becomes a function to run.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace espan::rehearsal {

using Work = std::function<void()>;
// [begin, end) of each allocation on the device.
using Arrays = std::vector<std::pair<uintptr_t, uintptr_t>>;
using Kernel = std::function<void(const Arrays&)>;
// Returns a kernel by its mangled name; empty if the file does not have it.
using Make = Kernel (*)(const char* name, unsigned blocks, unsigned threads, void** arguments,
                        size_t shared_bytes);

struct Launch {
  unsigned blocks, threads;
  size_t shared_bytes;
};

// The kernels in a file.
class Kernels {
 public:
  // `run` is called with the launch, all allocations, and the kernel's arguments.
  template <class... P, class Run>
  void add(void (*kernel)(P...), Run run) {
    Dl_info info;
    dladdr(reinterpret_cast<void*>(kernel), &info);
    table_[info.dli_sname] = [run](const Launch& launch, void** arguments) -> Kernel {
      size_t i = 0;
      // Braces guarantee the order of evaluation.
      const std::tuple<P...> values{*static_cast<P*>(arguments[i++])...};
      return [=](const Arrays& arrays) {
        std::apply([&](const P&... p) { run(launch, arrays, p...); }, values);
      };
    };
  }

  Kernel make(const char* name, const Launch& launch, void** arguments) const {
    const auto found = table_.find(name);
    return found == table_.end() ? Kernel() : found->second(launch, arguments);
  }

 private:
  std::map<std::string, std::function<Kernel(const Launch&, void**)>> table_;
};

}  // namespace espan::rehearsal

// Exports the kernels that the file's `kernels()` returns.
#define ESPAN_REHEARSAL_KERNELS                                                     \
  extern "C" espan::rehearsal::Kernel make_work(const char* name, unsigned blocks,  \
                                                unsigned threads, void** arguments, \
                                                size_t shared_bytes) {              \
    static const espan::rehearsal::Kernels all = kernels();                         \
    return all.make(name, {blocks, threads, shared_bytes}, arguments);              \
  }
