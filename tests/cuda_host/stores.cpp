// Stores on their way to memory: when and in which order they arrive, and who is woken by that.
#include <algorithm>

#include "scheduler.h"

namespace emulator {
namespace {

void check_alive(const Fiber* fiber, const Store& store) {
  const char* to = static_cast<const char*>(store.to);
  for (const Block* block : fiber->block->peers) {
    const bool inside = to >= block->shared && to < block->shared + scheduler->grid.shared;
    if (inside && block->unfinished == 0) throw Error("store to a block that has ended");
  }
}

void deliver(Fiber* fiber, size_t index) {
  std::vector<Store>& stores = fiber->stores;
  check_alive(fiber, stores[index]);
  std::memcpy(stores[index].to, stores[index].data, stores[index].bytes);
  stores.erase(stores.begin() + static_cast<ptrdiff_t>(index));
  scheduler->wakes = 0;
}

// One store that the seed chooses; of those to one address, the oldest. False if that must be a
// slow one and there may be others.
bool deliver_any(bool slow_too) {
  std::vector<Fiber*>& storing = scheduler->storing;
  const auto fast = [](const Store& store) { return !store.slow; };
  const auto has_fast = [&](const Fiber* fiber) {
    return std::any_of(fiber->stores.begin(), fiber->stores.end(), fast);
  };
  size_t chosen = scheduler->random() % storing.size();
  for (size_t i = 0; i < storing.size() && !has_fast(storing[chosen]); ++i) {
    chosen = (chosen + 1) % storing.size();
  }
  Fiber* fiber = storing[chosen];
  std::vector<Store>& stores = fiber->stores;
  if (!has_fast(fiber) && !slow_too) return false;
  size_t picked = scheduler->random() % stores.size();
  if (stores[picked].slow && has_fast(fiber)) {
    picked = static_cast<size_t>(std::find_if(stores.begin(), stores.end(), fast) - stores.begin());
  }
  const void* to = stores[picked].to;
  size_t oldest = 0;
  while (stores[oldest].to != to) ++oldest;
  deliver(fiber, oldest);
  if (stores.empty()) {
    storing[chosen] = storing.back();
    storing.pop_back();
  }
  return true;
}

void wake_pollers() {
  for (Fiber* poller : scheduler->pollers) make_runnable(poller);
  scheduler->pollers.clear();
}

}  // namespace

void deliver_all(Fiber* fiber) {
  while (!fiber->stores.empty()) deliver(fiber, 0);
  std::vector<Fiber*>& storing = scheduler->storing;
  storing.erase(std::remove(storing.begin(), storing.end(), fiber), storing.end());
}

void deliver_some() {
  Scheduler& s = *scheduler;
  const uint64_t one_in = s.delivery == Delivery::kSoon   ? 1
                          : s.delivery == Delivery::kLate ? 64
                                                          : 0;
  if (one_in != 0 && !s.storing.empty() && s.random() % one_in == 0) deliver_any(true);
  if (s.random() % 1024 == 0) wake_pollers();
}

bool wake_any() {
  Scheduler& s = *scheduler;
  if (!s.storing.empty()) {
    const uint64_t most = s.random() % 4 == 0 ? 16 : 8192;
    const bool slow_too = !deliver_any(false);
    for (uint64_t i = s.random() % most; i > 0 && !s.storing.empty(); --i) {
      if (!deliver_any(slow_too)) break;
    }
    if (slow_too && !s.storing.empty()) deliver_any(true);
    wake_pollers();
    return true;
  }
  // A store may have arrived between a poller's load and its going to sleep: the first time the
  // lanes of a warp may still meet over what some loaded before, the second time all load anew.
  if (s.pollers.empty() || s.wakes == 2) return false;
  ++s.wakes;
  wake_pollers();
  return true;
}

void buffer_store(void* to, const void* from, size_t bytes, int line) {
  std::vector<int>& lines = scheduler->store_lines;
  const auto seen = std::find(lines.begin(), lines.end(), line);
  const auto number = static_cast<uint64_t>(seen - lines.begin());
  if (seen == lines.end()) lines.push_back(line);
  const bool slow =
      scheduler->delivery == Delivery::kUneven && number % 2 == scheduler->grid.seed % 2;
  Store store{to, bytes, slow, {}};
  std::memcpy(store.data, from, bytes);
  Fiber* fiber = scheduler->current;
  if (fiber->stores.empty()) scheduler->storing.push_back(fiber);
  fiber->stores.push_back(store);
}

}  // namespace emulator
