// The scheduler behind emulator.h: fibers, barriers, warp meetings, store buffers.
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "hw.cuh"

namespace emulator {
namespace {

constexpr size_t kStackBytes = 64 * 1024;

struct Store {
  void* to;
  size_t bytes;
  unsigned char data[16];
};
void apply(std::vector<Store>& stores) {
  for (const Store& store : stores) std::memcpy(store.to, store.data, store.bytes);
  stores.clear();
}
void append(std::vector<Store>& to, std::vector<Store>& from) {
  to.insert(to.end(), from.begin(), from.end());
  from.clear();
}

struct Block;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  Block* block = nullptr;
  int index = 0;  // thread of its block
  bool done = false;
  const uint32_t* flag = nullptr;  // waits until *flag >= at_least
  uint32_t at_least = 0;
  uint64_t cluster_waits = 0;
  std::vector<Store> stores;         // exchange stores that no barrier has followed yet
  std::vector<Store> remote_stores;  // to other blocks of the cluster
};

struct Meeting {  // one warp's collective
  int arrived = 0;
  const char* name = nullptr;
  void* arguments[32];
};

struct Cluster {
  int threads = 0, arrived = 0;
  uint64_t phase = 0;
  std::vector<Fiber*> waiting;
};

struct Block {
  int x = 0, y = 0, rank = 0;
  Cluster* cluster = nullptr;
  std::vector<Block*> peers;  // blocks of the cluster by rank
  char* shared = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Meeting> meetings;              // per warp
  std::vector<std::vector<Store>> published;  // per warp: stores that a sync_warp ordered
  std::vector<Store> stores;                  // stores that a block barrier ordered
  std::vector<Fiber*> at_barrier;
  std::vector<Fiber*> runnable;
};

enum class Policy { kUniform, kPriorities, kSticky };

struct Scheduler {
  Grid grid;
  const std::function<void()>* body = nullptr;
  std::vector<Block> blocks;
  std::vector<Cluster> clusters;
  std::vector<Fiber*> flag_waiters;
  std::vector<uint64_t> priority;
  std::mt19937_64 random;
  Policy policy = Policy::kUniform;
  bool newest_first = false;
  size_t last_block = 0;
  ucontext_t context;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  Fiber* current = nullptr;
  std::exception_ptr failure;
};

Scheduler* scheduler = nullptr;
std::vector<Site> seen_sites;

// ---- switching ----

void to_scheduler(Fiber* fiber) {
  __sanitizer_start_switch_fiber(fiber->done ? nullptr : &fiber->fake_stack,
                                 scheduler->stack_bottom, scheduler->stack_size);
  swapcontext(&fiber->context, &scheduler->context);
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &scheduler->stack_bottom,
                                  &scheduler->stack_size);
}

struct Abandon {};  // unwinds a fiber after another one has failed

// The current fiber stops here until someone makes it runnable.
void block_current() {
  to_scheduler(scheduler->current);
  if (scheduler->failure) throw Abandon{};
}

void make_runnable(Fiber* fiber) { fiber->block->runnable.push_back(fiber); }

void fiber_main() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler->stack_bottom, &scheduler->stack_size);
  Fiber* fiber = scheduler->current;
  try {
    if (!scheduler->failure) (*scheduler->body)();
  } catch (const Abandon&) {
  } catch (...) {
    if (!scheduler->failure) scheduler->failure = std::current_exception();
  }
  fiber->done = true;
  to_scheduler(fiber);
}

void run(Fiber* fiber) {
  scheduler->current = fiber;
  __sanitizer_start_switch_fiber(&scheduler->fake_stack, fiber->stack.get(), kStackBytes);
  swapcontext(&scheduler->context, &fiber->context);
  __sanitizer_finish_switch_fiber(scheduler->fake_stack, nullptr, nullptr);
}

// ---- choosing ----

Block* choose_block() {
  Scheduler& s = *scheduler;
  const size_t count = s.blocks.size();
  if (s.policy == Policy::kSticky && !s.blocks[s.last_block].runnable.empty()) {
    return &s.blocks[s.last_block];
  }
  if (s.policy == Policy::kPriorities && s.random() % 512 == 0) {
    s.priority[s.random() % count] = s.random();
  }
  Block* best = nullptr;
  const size_t first = s.random() % count;
  for (size_t i = 0; i < count; ++i) {
    const size_t index = (first + i) % count;
    Block& block = s.blocks[index];
    if (block.runnable.empty()) continue;
    if (!best || s.priority[index] > s.priority[s.last_block]) {
      best = &block;
      s.last_block = index;
    }
    if (s.policy != Policy::kPriorities) break;
  }
  return best;
}

Fiber* choose() {
  Block* block = choose_block();
  if (!block) return nullptr;
  std::vector<Fiber*>& runnable = block->runnable;
  const size_t index =
      scheduler->newest_first ? runnable.size() - 1 : scheduler->random() % runnable.size();
  Fiber* fiber = runnable[index];
  runnable[index] = runnable.back();
  runnable.pop_back();
  return fiber;
}

void wake_flag_waiters() {
  std::vector<Fiber*>& waiters = scheduler->flag_waiters;
  for (size_t i = 0; i < waiters.size();) {
    if (*waiters[i]->flag >= waiters[i]->at_least) {
      make_runnable(waiters[i]);
      waiters[i] = waiters.back();
      waiters.pop_back();
    } else {
      ++i;
    }
  }
}

// ---- a grid ----

void build_blocks(Scheduler& s) {
  const Grid& grid = s.grid;
  s.blocks = std::vector<Block>(static_cast<size_t>(grid.x) * grid.y);
  s.clusters = std::vector<Cluster>(s.blocks.size() / grid.cluster);
  for (size_t b = 0; b < s.blocks.size(); ++b) {
    Block& block = s.blocks[b];
    block.x = static_cast<int>(b) % grid.x;
    block.y = static_cast<int>(b) / grid.x;
    block.rank = block.x % grid.cluster;
    block.cluster = &s.clusters[b / grid.cluster];
    block.cluster->threads += grid.threads;
    for (int r = 0; r < grid.cluster; ++r) {
      block.peers.push_back(&s.blocks[b - block.rank + r]);
    }
    const size_t bytes = (grid.shared + 15) / 16 * 16;
    block.shared = static_cast<char*>(std::aligned_alloc(16, bytes ? bytes : 16));
    std::memset(block.shared, 0xff, bytes);
    block.meetings.resize(grid.threads / 32);
    block.published.resize(grid.threads / 32);
    block.fibers = std::vector<Fiber>(grid.threads);
    for (int t = 0; t < grid.threads; ++t) {
      Fiber& fiber = block.fibers[t];
      fiber.block = &block;
      fiber.index = t;
      fiber.stack.reset(new char[kStackBytes]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      makecontext(&fiber.context, fiber_main, 0);
      make_runnable(&fiber);
    }
  }
}

}  // namespace

void launch(const Grid& grid, const std::function<void()>& body) {
  if (grid.threads % 32 != 0 || grid.x % grid.cluster != 0) {
    throw Error("launch: threads must be whole warps, blocks whole clusters");
  }
  Scheduler s;
  s.grid = grid;
  s.body = &body;
  s.random.seed(grid.seed);
  s.policy = static_cast<Policy>(grid.seed % 3);
  s.newest_first = grid.seed % 2 == 1;
  scheduler = &s;
  build_blocks(s);
  for (size_t i = 0; i < s.blocks.size(); ++i) s.priority.push_back(s.random());

  size_t unfinished = s.blocks.size() * grid.threads;
  while (unfinished > 0 && !s.failure) {
    Fiber* fiber = choose();
    if (!fiber) {
      s.failure = std::make_exception_ptr(
          Error("deadlock: " + std::to_string(unfinished) + " threads wait for ever"));
      break;
    }
    run(fiber);
    if (fiber->done) --unfinished;
  }
  for (Block& block : s.blocks) {
    for (Fiber& fiber : block.fibers) {
      if (!fiber.done) run(&fiber);  // after a failure: unwinds its stack
    }
  }
  for (Block& block : s.blocks) {
    apply(block.stores);
    for (auto& stores : block.published) apply(stores);
    for (Fiber& fiber : block.fibers) apply(fiber.stores);
    std::free(block.shared);
  }
  scheduler = nullptr;
  if (s.failure) std::rethrow_exception(s.failure);
}

void meet_warp(const char* name, void* arguments, void (*act)(void* const* lanes)) {
  Fiber* fiber = scheduler->current;
  Block* block = fiber->block;
  const int warp = fiber->index / 32;
  Meeting& meeting = block->meetings[warp];
  if (meeting.arrived > 0 && std::strcmp(meeting.name, name) != 0) {
    throw Error(std::string("a warp diverged: ") + meeting.name + " meets " + name);
  }
  meeting.name = name;
  meeting.arguments[fiber->index % 32] = arguments;
  if (++meeting.arrived < 32) return block_current();
  meeting.arrived = 0;
  if (act) act(meeting.arguments);
  for (int lane = 0; lane < 32; ++lane) {
    Fiber* other = &block->fibers[warp * 32 + lane];
    if (other != fiber) make_runnable(other);
  }
}

int omitted = -1;

const std::vector<Site>& sites() { return seen_sites; }

bool omit(Site site) {
  size_t number = 0;
  while (number < seen_sites.size() && (seen_sites[number].line != site.line ||
                                        std::strcmp(seen_sites[number].file, site.file) != 0)) {
    ++number;
  }
  if (number == seen_sites.size()) seen_sites.push_back(site);
  return static_cast<int>(number) == omitted;
}

void buffer_store(void* to, const void* from, size_t bytes) {
  Store store{to, bytes, {}};
  std::memcpy(store.data, from, bytes);
  scheduler->current->stores.push_back(store);
}

void buffer_remote_store(void* local, uint32_t rank, const void* from, size_t bytes) {
  Block* block = scheduler->current->block;
  if (rank >= block->peers.size()) throw Error("store to a block outside the cluster");
  const ptrdiff_t offset = static_cast<char*>(local) - block->shared;
  Store store{block->peers[rank]->shared + offset, bytes, {}};
  std::memcpy(store.data, from, bytes);
  scheduler->current->remote_stores.push_back(store);
}

void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    throw Error("an address is not " + std::to_string(bytes) + "-byte aligned");
  }
}

}  // namespace emulator

namespace fused_lstm {
namespace cuda {
namespace hw {

using emulator::scheduler;

int thread() { return scheduler->current->index; }
int threads() { return scheduler->grid.threads; }
int64_t block_x() { return scheduler->current->block->x; }
int block_y() { return scheduler->current->block->y; }
char* shared_memory() { return scheduler->current->block->shared; }
uint32_t cluster_rank() { return static_cast<uint32_t>(scheduler->current->block->rank); }

void sync_warp(const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::Fiber* fiber = scheduler->current;
  emulator::append(fiber->block->published[fiber->index / 32], fiber->stores);
  emulator::meet_warp("sync_warp", nullptr, nullptr);
}

void sync_block(const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::Fiber* fiber = scheduler->current;
  emulator::Block* block = fiber->block;
  block->at_barrier.push_back(fiber);
  emulator::append(block->stores, fiber->stores);
  if (block->at_barrier.size() < block->fibers.size()) return emulator::block_current();
  for (auto& stores : block->published) emulator::append(block->stores, stores);
  for (emulator::Fiber* other : block->at_barrier) {
    if (other != fiber) emulator::make_runnable(other);
  }
  block->at_barrier.clear();
}

void release_flag(uint32_t* flag, uint32_t value, const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::Fiber* fiber = scheduler->current;
  emulator::apply(fiber->block->stores);
  emulator::apply(fiber->block->published[fiber->index / 32]);
  emulator::apply(fiber->stores);
  *flag = value;
  emulator::wake_flag_waiters();
}

void wait_flag(const uint32_t* flag, uint32_t at_least, const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::Fiber* fiber = scheduler->current;
  fiber->flag = flag;
  fiber->at_least = at_least;
  if (*flag >= at_least) return;
  scheduler->flag_waiters.push_back(fiber);
  emulator::block_current();
}

void cluster_arrive(const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::Fiber* fiber = scheduler->current;
  emulator::Cluster* cluster = fiber->block->cluster;
  emulator::apply(fiber->remote_stores);
  if (++cluster->arrived < cluster->threads) return;
  cluster->arrived = 0;
  ++cluster->phase;
  for (emulator::Fiber* other : cluster->waiting) emulator::make_runnable(other);
  cluster->waiting.clear();
}

void cluster_wait(const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::Fiber* fiber = scheduler->current;
  emulator::Cluster* cluster = fiber->block->cluster;
  if (fiber->cluster_waits++ < cluster->phase) return;
  cluster->waiting.push_back(fiber);
  emulator::block_current();
}

}  // namespace hw
}  // namespace cuda
}  // namespace fused_lstm
