// The emulated block.  Only x86-64: a fiber switch is written for it, since the portable way saves
// the signal mask with two system calls each time and an mma is 32 switches.
#include "machine.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>

extern "C" void espan_switch_fiber(void** save, void* load);
asm(R"(.text
.globl espan_switch_fiber
espan_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace espan::emulator {
namespace {

constexpr size_t kStack = 64 << 10;
constexpr uint32_t kSlack = 16;

enum class State { ready, waiting, at_barrier, done };

struct Copy {
  uint32_t to;
  const void* from;
  bool take;
  uint32_t bytes;
};

struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::ready;
  const char* at = "";
  std::vector<Copy> copies;
};

struct Warp {
  Lane lanes[32];
  int arrived = 0, next = 0;  // the lane to run when the warp has its turn
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  const std::vector<Array>* arrays = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::map<std::string, Wavefronts> wavefronts;
  std::mt19937 random;
  bool preempt = false;
  void* main = nullptr;
  unsigned current = 0, block = 0;
  std::string error;
};

Machine* machine = nullptr;

Warp& warp() { return machine->warps[machine->current / 32]; }
Fiber& fiber() { return machine->fibers[machine->current]; }

void to_main() { espan_switch_fiber(&fiber().stack_pointer, machine->main); }

// The block ends here; run() throws.
void fail(const std::string& what) {
  if (machine->error.empty())
    machine->error = what + " (block " + std::to_string(machine->block) + ", thread " +
                     std::to_string(machine->current) + ")";
  to_main();
}

// Runs another lane of the warp, or leaves the warp if none can run.
void next_lane() {
  const unsigned me = machine->current, first = me / 32 * 32;
  for (unsigned i = 1; i <= 32; ++i) {
    const unsigned other = first + (me - first + i) % 32;
    if (machine->fibers[other].state != State::ready) continue;
    if (other == me) return;
    machine->current = other;
    espan_switch_fiber(&machine->fibers[me].stack_pointer, machine->fibers[other].stack_pointer);
    return;
  }
  if (warp().arrived > 0)
    fail("some lanes of a warp wait at " + std::string(fiber().at) +
         " and others never come there");
  to_main();
}

void entry() {
  (*machine->kernel)();
  fiber().state = State::done;
  fiber().at = "the end";
  next_lane();
  std::abort();
}

void start(unsigned block, size_t shared_bytes) {
  machine->block = block;
  machine->shared.assign(shared_bytes, 0xff);
  for (Warp& w : machine->warps) w.arrived = w.next = 0;
  for (Fiber& f : machine->fibers) {
    f.state = State::ready;
    f.copies.clear();
    const auto top = reinterpret_cast<uintptr_t>(f.stack.get() + kStack) & ~uintptr_t{15};
    void** stack = reinterpret_cast<void**>(top);
    *--stack = nullptr;  // the alignment that a function expects at its entry
    *--stack = reinterpret_cast<void*>(&entry);
    for (int i = 0; i < 6; ++i) *--stack = nullptr;
    f.stack_pointer = stack;
  }
}

bool can_run(unsigned w) {
  for (unsigned t = w * 32; t < w * 32 + 32; ++t)
    if (machine->fibers[t].state == State::ready) return true;
  return false;
}

void run_warp(unsigned w) {
  unsigned t = machine->warps[w].next;
  while (machine->fibers[w * 32 + t].state != State::ready) t = (t + 1) % 32;
  machine->current = w * 32 + t;
  espan_switch_fiber(&machine->main, machine->fibers[machine->current].stack_pointer);
  machine->warps[w].next = static_cast<int>(machine->current % 32);
  if (!machine->error.empty()) throw std::runtime_error(machine->error);
}

void run_block(unsigned order) {
  std::vector<unsigned> turns(machine->warps.size());
  std::iota(turns.begin(), turns.end(), 0);
  if (order == 1) std::reverse(turns.begin(), turns.end());
  for (;;) {
    if (order > 1) std::shuffle(turns.begin(), turns.end(), machine->random);
    const auto w = std::find_if(turns.begin(), turns.end(), can_run);
    if (w != turns.end()) {
      run_warp(*w);
      continue;
    }
    const auto is = [](State s) { return [s](const Fiber& f) { return f.state == s; }; };
    auto& fibers = machine->fibers;
    if (std::all_of(fibers.begin(), fibers.end(), is(State::done))) return;
    if (!std::all_of(fibers.begin(), fibers.end(), is(State::at_barrier)))
      throw std::runtime_error("some threads wait at a barrier and others have ended");
    for (Fiber& f : fibers) f.state = State::ready;
  }
}

}  // namespace

Index thread_index() { return {machine->current}; }
Index block_index() { return {machine->block}; }

void collective(const char* name, uint32_t address, void* data, bool keep, Action action) {
  Warp& w = warp();
  w.lanes[machine->current % 32] = {address, data, keep};
  fiber().at = name;
  fiber().state = State::waiting;
  if (++w.arrived < 32) return next_lane();
  const unsigned first = machine->current / 32 * 32;
  for (unsigned t = first; t < first + 32; ++t)
    if (std::strcmp(machine->fibers[t].at, name) != 0)
      fail("lanes of a warp wait at " + std::string(name) + " and at " + machine->fibers[t].at);
  action(w.lanes);
  w.arrived = 0;
  for (unsigned t = first; t < first + 32; ++t) machine->fibers[t].state = State::ready;
  if (machine->preempt && machine->random() % 64 == 0) to_main();
}

void barrier() {
  fiber().state = State::at_barrier;
  fiber().at = "a barrier";
  next_lane();
}

unsigned char* shared(uint32_t address, uint32_t bytes) {
  static unsigned char nowhere[kSlack];
  if (address % bytes != 0) fail("misaligned shared memory access");
  if (address + bytes <= machine->shared.size()) return machine->shared.data() + address;
  fail("shared memory access out of range");
  return nowhere;
}

void check_global(const void* address, size_t bytes, bool write) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin % bytes != 0) fail("misaligned global memory access");
  for (const Array& a : *machine->arrays)
    if (begin >= a.begin && begin + bytes <= a.end && (a.writable || !write)) return;
  fail(write ? "global memory write out of range" : "global memory read out of range");
}

void start_copy(uint32_t to, const void* from, bool take, uint32_t bytes) {
  fiber().copies.push_back({to, from, take, bytes});
}

void finish_copies() {
  for (const Copy& c : fiber().copies) {
    if (c.take)
      std::memcpy(shared(c.to, c.bytes), c.from, c.bytes);
    else
      std::memset(shared(c.to, c.bytes), 0, c.bytes);
  }
  fiber().copies.clear();
}

void count(const char* name, const Lane* lanes, uint32_t bytes) {
  // 128 bytes go at once: 8 lanes of 16 bytes, 16 of 8, 32 of 4 or fewer.
  const uint32_t together = std::min<uint32_t>(32, 128 / bytes);
  Wavefronts& total = machine->wavefronts[name];
  for (uint32_t first = 0; first < 32; first += together) {
    // Of each bank, the words that are wanted.
    std::vector<uint32_t> words;
    for (uint32_t l = first; l < first + together; ++l)
      if (lanes[l].keep)
        for (uint32_t a = lanes[l].address & ~3u; a < lanes[l].address + bytes; a += 4)
          words.push_back(a / 4);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    uint64_t in_bank[32] = {}, most = 0;
    for (const uint32_t word : words) most = std::max(most, ++in_bank[word % 32]);
    total.fewest += most > 0;
    total.needed += most;
  }
}

std::map<std::string, Wavefronts> run(unsigned blocks, unsigned threads, size_t shared_bytes,
                                      unsigned order, const std::vector<Array>& arrays,
                                      const std::function<void()>& kernel) {
  Machine m;
  m.fibers = std::vector<Fiber>(threads);
  m.warps = std::vector<Warp>(threads / 32);
  m.arrays = &arrays;
  m.kernel = &kernel;
  m.random.seed(order);
  m.preempt = order > 1;
  machine = &m;
  for (unsigned block = 0; block < blocks; ++block) {
    start(block, shared_bytes);
    run_block(order);
  }
  machine = nullptr;
  return m.wavefronts;
}

}  // namespace espan::emulator
