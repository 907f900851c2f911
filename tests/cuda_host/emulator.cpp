// The scheduler behind emulator.h: fibers, barriers, warp meetings.
#include <sanitizer/common_interface_defs.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "scheduler.h"

#ifdef EMULATOR_OWN_SWITCH
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulator_switch, . - emulator_switch
)");
#endif

namespace emulator {

Scheduler* scheduler = nullptr;

void make_runnable(Fiber* fiber) { fiber->block->runnable.push_back(fiber); }

namespace {

std::vector<Site> seen_sites;

// ---- switching ----

void to_scheduler(Fiber* fiber) {
  __sanitizer_start_switch_fiber(fiber->done ? nullptr : &fiber->fake_stack,
                                 scheduler->stack_bottom, scheduler->stack_size);
  switch_context(fiber->context, scheduler->context);
  __sanitizer_finish_switch_fiber(fiber->fake_stack, &scheduler->stack_bottom,
                                  &scheduler->stack_size);
}

struct Abandon {};  // unwinds a fiber after another one has failed

// The current fiber stops here until someone makes it runnable.
void block_current() {
  to_scheduler(scheduler->current);
  if (scheduler->failure) throw Abandon{};
}

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
  switch_context(scheduler->context, fiber->context);
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

// ---- a grid ----

void build_blocks(Scheduler& s) {
  const Grid& grid = s.grid;
  s.blocks = std::vector<Block>(static_cast<size_t>(grid.x) * grid.y);
  s.clusters = std::vector<Cluster>(s.blocks.size() / grid.cluster);
  const Known* nothing = &s.knowledge.emplace_back(std::min(s.blocks.size(), kMostBlocks));
  for (size_t b = 0; b < s.blocks.size(); ++b) {
    Block& block = s.blocks[b];
    block.number = b;
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
    block.unfinished = grid.threads;
    block.fibers = std::vector<Fiber>(grid.threads);
    for (int t = 0; t < grid.threads; ++t) {
      Fiber& fiber = block.fibers[t];
      fiber.block = &block;
      fiber.index = t;
      fiber.known = nothing;
      fiber.loaded = *nothing;
      fiber.stack.reset(new char[kStackBytes]);
      make_context(fiber.context, fiber.stack.get(), kStackBytes, fiber_main);
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
  s.delivery = static_cast<Delivery>(grid.seed / 2 % 4);
  scheduler = &s;
  build_blocks(s);
  for (size_t i = 0; i < s.blocks.size(); ++i) s.priority.push_back(s.random());

  size_t unfinished = s.blocks.size() * grid.threads;
  try {
    while (unfinished > 0 && !s.failure) {
      deliver_some();
      Fiber* fiber = choose();
      if (!fiber) {
        if (wake_any()) continue;
        throw Error("deadlock: " + std::to_string(unfinished) + " threads wait for ever");
      }
      run(fiber);
      if (!fiber->done) continue;
      --unfinished;
      --fiber->block->unfinished;
    }
  } catch (const Error&) {
    s.failure = std::current_exception();
  }
  for (Block& block : s.blocks) {
    for (Fiber& fiber : block.fibers) {
      if (!fiber.done) run(&fiber);  // after a failure: unwinds its stack
    }
  }
  for (Block& block : s.blocks) std::free(block.shared);
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

// A barrier: the last of `count` to come wakes the others.
static void meet(std::vector<Fiber*>& waiting, size_t count) {
  Fiber* fiber = scheduler->current;
  waiting.push_back(fiber);
  if (waiting.size() < count) return block_current();
  share(waiting);
  for (Fiber* other : waiting) {
    if (other != fiber) make_runnable(other);
  }
  waiting.clear();
}

int omitted = -1;
bool no_release = false, no_acquire = false;

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

void* cluster_address(void* local, uint32_t rank) {
  Block* block = scheduler->current->block;
  if (rank >= block->peers.size()) throw Error("store to a block outside the cluster");
  return block->peers[rank]->shared + (static_cast<char*>(local) - block->shared);
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
  emulator::meet_warp("sync_warp", nullptr, nullptr);
}

void sync_block(const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::Block* block = scheduler->current->block;
  emulator::meet(block->at_barrier, block->fibers.size());
}

void sync_cluster(const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::Cluster* cluster = scheduler->current->block->cluster;
  emulator::fence(scheduler->current);
  emulator::meet(cluster->at_barrier, cluster->threads);
}

void fence_gpu(const char* file, int line) {
  if (emulator::omit({file, line})) return;
  emulator::fence(scheduler->current);
}

void fence_cluster_shared(const char* file, int line) { fence_gpu(file, line); }

int64_t clock() {
  static int64_t ticks = 0;
  return ++ticks;
}

// Lane (row, column / 2) has two neighbours of a row of 8.
uint32_t transpose_16(uint32_t word) {
  struct Arguments {
    uint32_t word, result;
  } arguments{word, 0};
  emulator::meet_warp("transpose_16", &arguments, [](void* const* all) {
    const auto of = [&](int lane) { return static_cast<Arguments*>(all[lane]); };
    const auto element = [&](int row, int column) {
      return of(row * 4 + column / 2)->word >> (column % 2 * 16) & 0xffff;
    };
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4 * 2;
      of(lane)->result = element(column, row) | element(column + 1, row) << 16;
    }
  });
  return arguments.result;
}

uint32_t shuffle_xor(uint32_t value, int lanes) {
  struct Arguments {
    uint32_t value, result;
    int lanes;
  } arguments{value, 0, lanes};
  emulator::meet_warp("shuffle_xor", &arguments, [](void* const* all) {
    const auto of = [&](int lane) { return static_cast<Arguments*>(all[lane]); };
    for (int lane = 0; lane < 32; ++lane) of(lane)->result = of(lane ^ of(lane)->lanes)->value;
  });
  return arguments.result;
}

bool any_lane(bool flag) {
  emulator::meet_warp("any_lane", &flag, [](void* const* all) {
    bool any = false;
    for (int lane = 0; lane < 32; ++lane) any |= *static_cast<bool*>(all[lane]);
    for (int lane = 0; lane < 32; ++lane) *static_cast<bool*>(all[lane]) = any;
  });
  if (flag) {
    scheduler->pollers.push_back(scheduler->current);
    emulator::block_current();
  }
  return flag;
}

}  // namespace hw
}  // namespace cuda
}  // namespace fused_lstm
