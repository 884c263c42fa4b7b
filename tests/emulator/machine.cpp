// The emulated thread block.  x86-64 only: the fiber switch is written in assembly, since the
// portable way saves the signal mask with two system calls per switch, and an mma takes 32
// switches.
#include "machine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <utility>

#include "ordering.h"

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

enum class State { ready, waiting, at_barrier, at_phase, done };

// What lands later: the copies of a thread, which then arrives at the barrier, or a bulk copy.
struct Landing {
  std::vector<Copy> copies;
  uint32_t barrier, bytes;  // bytes of a bulk copy, which completes them instead of arriving
};

struct Barrier {
  uint32_t index = 0, count = 0, pending = 0, phase = 0;
  int64_t bytes = 0;         // expected but not yet copied
  Knowledge arrived, ended;  // of the arrivals so far, and at the end of the last phase
};

// The threads of a warpgroup that have arrived at the wait for their products, and at a barrier.
struct Group {
  int arrived = 0, at_barrier = 0, barrier = 0;
};

struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::ready;
  const char* at = "";
  std::vector<Copy> copies;
  uint32_t barrier = 0, parity = 0;  // the phase that it waits for
  std::vector<Product> products;
  std::vector<size_t> groups;   // the number of products at each commit
  bool registers_free = false;  // wgmma_fence() was called since the last wait
  std::map<float*, std::vector<float>> accumulators;  // their values before the first product
};

struct Warp {
  Lane lanes[32];
  int arrived = 0, next = 0;  // next: the lane to run when the warp is scheduled
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Group> groups;
  std::vector<unsigned char> shared;
  Ordering ordering;
  std::map<uint32_t, Barrier> barriers;
  std::vector<Landing> landings;
  const std::vector<Array>* arrays = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::map<std::string, Wavefronts> wavefronts;
  std::mt19937 random;
  bool preempt = false, early = false;  // early: asynchronous copies land immediately
  void* main = nullptr;
  unsigned current = 0, block = 0;
  std::string error;
};

Machine* machine = nullptr;

Warp& warp() { return machine->warps[machine->current / 32]; }
Fiber& fiber() { return machine->fibers[machine->current]; }

void to_main() { espan_switch_fiber(&fiber().stack_pointer, machine->main); }

// Ends the block; run() throws.
void fail(const std::string& what) {
  if (machine->error.empty())
    machine->error = what + " (block " + std::to_string(machine->block) + ", thread " +
                     std::to_string(machine->current) + ")";
  to_main();
}

void check(const std::string& wrong) {
  if (!wrong.empty()) fail(wrong);
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
  bool later = false;  // whether a lane may still arrive
  for (unsigned t = first; t < first + 32; ++t)
    later |= machine->fibers[t].state == State::at_phase;
  if (warp().arrived > 0 && !later)
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
  machine->ordering.start(static_cast<unsigned>(machine->fibers.size()), shared_bytes);
  machine->barriers.clear();
  machine->landings.clear();
  for (Group& g : machine->groups) g = Group{};
  for (Warp& w : machine->warps) w.arrived = w.next = 0;
  for (Fiber& f : machine->fibers) {
    f.state = State::ready;
    f.copies.clear();
    f.products.clear();
    f.groups.clear();
    f.registers_free = false;
    f.accumulators.clear();
    const auto top = reinterpret_cast<uintptr_t>(f.stack.get() + kStack) & ~uintptr_t{15};
    void** stack = reinterpret_cast<void**>(top);
    *--stack = nullptr;  // aligns the stack as the ABI requires at function entry
    *--stack = reinterpret_cast<void*>(&entry);
    for (int i = 0; i < 6; ++i) *--stack = nullptr;
    f.stack_pointer = stack;
  }
}

bool phase_is_over(uint32_t barrier, uint32_t parity) {
  return (machine->barriers.at(barrier).phase & 1) != parity;
}

std::string name_of(uint32_t barrier) { return "the barrier at " + std::to_string(barrier); }

void check_barriers(uint32_t to, uint32_t bytes) {
  const auto next = machine->barriers.lower_bound(to < 8 ? 0 : to - 7);
  if (next != machine->barriers.end() && next->first < to + bytes)
    fail(name_of(next->first) + " overwritten");
}

// Returns the barrier.  An error if no initialisation is ordered before this access.
Barrier& initialized(uint32_t barrier) {
  if (machine->barriers.count(barrier) == 0) fail("a barrier that was not initialised");
  check(machine->ordering.may_read(machine->current, barrier, 8, true));
  return machine->barriers[barrier];
}

bool can_run(unsigned w) {
  bool any = false;
  for (unsigned t = w * 32; t < w * 32 + 32; ++t) {
    Fiber& f = machine->fibers[t];
    if (f.state == State::at_phase && phase_is_over(f.barrier, f.parity)) f.state = State::ready;
    any |= f.state == State::ready;
  }
  return any;
}

void land(const Copy& copy) {
  unsigned char* to = machine->shared.data() + copy.to;
  if (copy.take)
    std::memcpy(to, copy.from, copy.bytes);
  else
    std::memset(to, 0, copy.bytes);
}

void end_phase_if_complete(Barrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  ++b.phase;
  b.pending = b.count;
  b.ended = b.arrived;
}

std::string too_many_at(uint32_t barrier) {
  return "more arrivals at " + name_of(barrier) + " than its phase takes";
}

// Lands the oldest copy that a thread waits for; in random order, any of those.  If `early`, also
// considers copies that no thread waits for.  Returns whether one landed.
bool land_next(bool early) {
  std::vector<size_t> wanted;
  for (size_t i = 0; i < machine->landings.size(); ++i)
    for (const Fiber& f : machine->fibers)
      if (early || (f.state == State::at_phase && f.barrier == machine->landings[i].barrier)) {
        wanted.push_back(i);
        break;
      }
  if (wanted.empty()) return false;
  const size_t which = wanted[machine->preempt ? machine->random() % wanted.size() : 0];
  const Landing landing = machine->landings[which];
  machine->landings.erase(machine->landings.begin() + static_cast<std::ptrdiff_t>(which));
  Barrier& b = machine->barriers.at(landing.barrier);
  for (const Copy& c : landing.copies) {
    land(c);
    machine->ordering.land(b.index, b.arrived, c.to, c.bytes);
  }
  if (landing.bytes == 0 && b.pending-- == 0) {
    machine->error = too_many_at(landing.barrier);
    return false;
  }
  b.bytes -= landing.bytes;
  end_phase_if_complete(b);
  return true;
}

void throw_error() {
  if (!machine->error.empty()) throw std::runtime_error(machine->error);
}

void run_warp(unsigned w) {
  unsigned t = machine->warps[w].next;
  while (machine->fibers[w * 32 + t].state != State::ready) t = (t + 1) % 32;
  machine->current = w * 32 + t;
  espan_switch_fiber(&machine->main, machine->fibers[machine->current].stack_pointer);
  machine->warps[w].next = static_cast<int>(machine->current % 32);
  throw_error();
}

void check_all_is_done() {
  for (const Landing& landing : machine->landings)
    if (landing.bytes != 0) throw std::runtime_error("a block ended before its bulk copies landed");
  for (const Fiber& f : machine->fibers)
    if (!f.products.empty()) throw std::runtime_error("a thread ended while its products ran");
}

[[noreturn]] void report_deadlock() {
  for (const Fiber& f : machine->fibers) {
    if (f.state != State::at_phase) continue;
    const Barrier& b = machine->barriers.at(f.barrier);
    throw std::runtime_error("some threads wait for ever at " + name_of(f.barrier) + ": " +
                             std::to_string(b.pending) + " arrivals and " +
                             std::to_string(b.bytes) + " bytes are missing");
  }
  throw std::runtime_error("some threads wait at a barrier and others have ended");
}

void run_block(unsigned order) {
  std::vector<unsigned> turns(machine->warps.size());
  std::iota(turns.begin(), turns.end(), 0);
  if (order == 1) std::reverse(turns.begin(), turns.end());
  for (;;) {
    if (order > 1) std::shuffle(turns.begin(), turns.end(), machine->random);
    if (order > 1 && machine->random() % 16 == 0) land_next(true);
    throw_error();
    const auto w = std::find_if(turns.begin(), turns.end(), can_run);
    if (w != turns.end()) {
      run_warp(*w);
      continue;
    }
    if (land_next(false)) continue;
    throw_error();
    const auto is = [](State s) { return [s](const Fiber& f) { return f.state == s; }; };
    auto& fibers = machine->fibers;
    if (std::all_of(fibers.begin(), fibers.end(), is(State::done))) return check_all_is_done();
    if (!std::all_of(fibers.begin(), fibers.end(), is(State::at_barrier))) report_deadlock();
    machine->ordering.join(0, static_cast<unsigned>(fibers.size()));
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

void group_barrier(int id) {
  const unsigned index = machine->current / 128, first = index * 128;
  Group& group = machine->groups[index];
  if (id < 1 || id > 15) fail("a warpgroup's barrier has a number from 1 to 15");
  for (const Group& other : machine->groups)
    if (&other != &group && other.at_barrier > 0 && other.barrier == id)
      fail("two warpgroups at the same barrier");
  if (group.at_barrier > 0 && group.barrier != id)
    fail("the threads of a warpgroup wait at different barriers");
  group.barrier = id;
  fiber().state = State::waiting;
  fiber().at = "a warpgroup's barrier";
  if (++group.at_barrier < 128) return next_lane();
  group.at_barrier = 0;
  machine->ordering.join(first, 128);
  for (unsigned t = first; t < first + 128; ++t) machine->fibers[t].state = State::ready;
}

unsigned char* shared(uint32_t address, uint32_t bytes) {
  static unsigned char nowhere[kSlack];
  if (address % bytes != 0) fail("misaligned shared memory access");
  if (address + bytes <= machine->shared.size()) return machine->shared.data() + address;
  fail("shared memory access out of range");
  return nowhere;
}

void load(unsigned lane, void* to, uint32_t from, uint32_t bytes) {
  const unsigned char* place = shared(from, bytes);
  check(machine->ordering.read(machine->current / 32 * 32 + lane, from, bytes));
  std::memcpy(to, place, bytes);
}

void store(unsigned lane, uint32_t to, const void* from, uint32_t bytes) {
  unsigned char* place = shared(to, bytes);
  check_barriers(to, bytes);
  check(machine->ordering.write(machine->current / 32 * 32 + lane, to, bytes));
  std::memcpy(place, from, bytes);
}

void join_warp() { machine->ordering.join(machine->current / 32 * 32, 32); }
void proxy_fence() { machine->ordering.fence(machine->current); }

void check_global(const void* address, size_t bytes, bool write) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin % bytes != 0) fail("misaligned global memory access");
  for (const Array& a : *machine->arrays)
    if (begin >= a.begin && begin + bytes <= a.end && (a.writable || !write)) return;
  fail(write ? "global memory write out of range" : "global memory read out of range");
}

void start_copy(uint32_t to, const void* from, bool take, uint32_t bytes) {
  check_barriers(to, bytes);
  check(machine->ordering.start_copy(machine->current, to, bytes, true));
  fiber().copies.push_back({to, from, take, bytes});
}

void finish_copies() {
  for (const Copy& c : fiber().copies) {
    land(c);
    machine->ordering.land(machine->current, c.to, c.bytes);
  }
  fiber().copies.clear();
}

void barrier_init(uint32_t barrier, uint32_t count) {
  shared(barrier, 8);
  check(machine->ordering.write(machine->current, barrier, 8));
  const Knowledge nothing = machine->ordering.nothing();
  const auto index = static_cast<uint32_t>(machine->barriers.size());
  if (machine->barriers.count(barrier) != 0) fail(name_of(barrier) + " initialised twice");
  if (index == kMostBarriers) fail("more barriers than the emulator has clocks for");
  machine->barriers[barrier] = {index, count, count, 0, 0, nothing, nothing};
}

void barrier_arrive(uint32_t barrier, uint32_t expected_bytes) {
  Barrier& b = initialized(barrier);
  if (b.pending == 0) fail(too_many_at(barrier));
  machine->ordering.release(machine->current, b.arrived);
  b.bytes += expected_bytes;
  --b.pending;
  end_phase_if_complete(b);
}

void barrier_wait(uint32_t barrier, uint32_t parity) {
  const Barrier& b = initialized(barrier);
  if (!phase_is_over(barrier, parity)) {
    fiber().state = State::at_phase;
    fiber().at = "a phase";
    fiber().barrier = barrier;
    fiber().parity = parity;
    next_lane();
  }
  machine->ordering.acquire(machine->current, b.ended);
}

void land_at_once() {
  land_next(true);
  if (!machine->error.empty()) to_main();
}

void copies_arrive(uint32_t barrier) {
  initialized(barrier);
  machine->landings.push_back({fiber().copies, barrier, 0});
  fiber().copies.clear();
  if (machine->early) land_at_once();
}

void bulk_copies(const std::vector<Copy>& copies, uint32_t barrier) {
  initialized(barrier);
  uint32_t bytes = 0;
  for (const Copy& c : copies) {
    shared(c.to, 16);
    if (c.take) check_global(c.from, 16, false);
    check_barriers(c.to, c.bytes);
    check(machine->ordering.start_copy(machine->current, c.to, c.bytes, false));
    bytes += c.bytes;
  }
  machine->landings.push_back({copies, barrier, bytes});
  if (machine->early) land_at_once();
}

void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
  if (bytes % 16 != 0) fail("a bulk copy of a number of bytes that is no multiple of 16");
  std::vector<Copy> copies;
  for (uint32_t i = 0; i < bytes; i += 16)
    copies.push_back({to + i, static_cast<const char*>(from) + i, true, 16});
  bulk_copies(copies, barrier);
}

uint32_t operand(uint64_t descriptor, int line, int k) {
  const uint32_t address = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 == 0) {
    const uint32_t leading = (descriptor >> 16 & 0x3fff) << 4;
    return address + k / 8 * leading + line / 8 * stride + line % 8 * 16;
  }
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
    fail("a descriptor that the emulator does not know");
  const uint32_t at = address + k / 8 * 16 + line / 8 * stride + line % 8 * 128;
  return at ^ (at >> 3 & 0x70);
}

// Keeps the values of a product's accumulators, and replaces them by NaN while it runs.
void take_accumulators(const Product& product) {
  auto [entry, first] = fiber().accumulators.try_emplace(product.d);
  if (!first) return;
  // Overlapping accumulators that start at different registers are not supported.
  entry->second.assign(product.d, product.d + product.values);
  std::fill(product.d, product.d + product.values, std::numeric_limits<float>::quiet_NaN());
}

void free_registers() { fiber().registers_free = true; }
void commit_products() { fiber().groups.push_back(fiber().products.size()); }

void start_product(Product product) {
  if (!fiber().registers_free) fail("a product without wgmma_fence() since the last wait");
  product.started = machine->ordering.now();
  if (machine->current % 32 == 0)
    product.each_operand([](uint32_t address) {
      shared(address, 16);
      check(machine->ordering.may_read(machine->current, address, 16, false));
    });
  take_accumulators(product);
  fiber().products.push_back(product);
}

void finish_products(size_t running) {
  const unsigned first = machine->current / 128 * 128;
  Group& group = machine->groups[machine->current / 128];
  const auto& commits = fiber().groups;
  if ((commits.empty() ? 0 : commits.back()) != fiber().products.size())
    fail("a wait for products not committed");
  fiber().state = State::waiting;
  fiber().at = "wgmma_wait";
  if (++group.arrived < 128) return next_lane();
  group.arrived = 0;
  const size_t total = fiber().products.size();
  const size_t done = commits.size() - std::min(commits.size(), running);
  const size_t count = done == 0 ? 0 : commits[done - 1];
  std::vector<const Product*> products(128);
  for (unsigned t = first; t < first + 128; ++t) {
    Fiber& f = machine->fibers[t];
    if (f.products.size() != total) fail("the threads of a warpgroup start different products");
    for (const auto& [d, values] : f.accumulators) {
      if (!std::all_of(d, d + values.size(), [](float v) { return std::isnan(v); }))
        fail("accumulators written while a product runs");
      std::copy(values.begin(), values.end(), d);
    }
    f.accumulators.clear();
  }
  for (size_t i = 0; i < count; ++i) {
    for (unsigned t = 0; t < 128; ++t) {
      products[t] = &machine->fibers[first + t].products[i];
      if (products[t]->b != products[0]->b || products[t]->now != products[0]->now ||
          products[t]->a_descriptor != products[0]->a_descriptor)
        fail("the threads of a warpgroup start different products");
    }
    for (unsigned t = 0; t < 128; t += 32)
      products[t]->each_operand([&](uint32_t address) {
        check(machine->ordering.finish_product_read(first + t, address, products[t]->started));
      });
    products[0]->now(products.data());
  }
  for (unsigned t = first; t < first + 128; ++t) {
    Fiber& f = machine->fibers[t];
    f.products.erase(f.products.begin(), f.products.begin() + count);
    f.groups.erase(f.groups.begin(), f.groups.begin() + done);
    for (size_t& end : f.groups) end -= count;
    const unsigned current = std::exchange(machine->current, t);
    for (const Product& product : f.products) take_accumulators(product);
    machine->current = current;
    f.registers_free = false;
    f.state = State::ready;
  }
}

void count(const char* name, const Lane* lanes, uint32_t bytes) {
  // 128 bytes are transferred at once: 8 lanes of 16 bytes, 16 of 8, or 32 of 4 or fewer.
  const uint32_t together = std::min<uint32_t>(32, 128 / bytes);
  Wavefronts& total = machine->wavefronts[name];
  for (uint32_t first = 0; first < 32; first += together) {
    // The distinct words that these lanes access.
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
  m.groups = std::vector<Group>((threads + 127) / 128);
  m.arrays = &arrays;
  m.kernel = &kernel;
  m.random.seed(order);
  m.preempt = order > 1;
  m.early = order == 0;
  machine = &m;
  for (unsigned block = 0; block < blocks; ++block) {
    start(block, shared_bytes);
    run_block(order);
  }
  machine = nullptr;
  return m.wavefronts;
}

}  // namespace espan::emulator
