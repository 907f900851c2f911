// Memory that blocks share: when and in which order stores arrive, who is woken by that, and which
// values loads may still return.
#include <sanitizer/asan_interface.h>

#include <algorithm>

#include "scheduler.h"

namespace emulator {
namespace {

void join(Known& known, const Known& more) {
  for (size_t i = 0; i < known.size(); ++i) known[i] = std::max(known[i], more[i]);
}

uint64_t read(const void* from, size_t bytes) {
  uint64_t data = 0;
  std::memcpy(&data, from, bytes);
  return data;
}

// This file is compiled without the sanitizers.
void check_address(const void* address, size_t bytes) {
  if (__asan_region_is_poisoned(const_cast<void*>(address), bytes)) {
    throw Error("a word outside of what is allocated");
  }
}

// ---- the values of a word ----

Word* find_word(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto found = scheduler->pages.find(at / kPageBytes);
  return found == scheduler->pages.end() ? nullptr : &found->second->words[at % kPageBytes / 4];
}

Word& make_word(void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  std::unique_ptr<Page>& page = scheduler->pages[at / kPageBytes];
  if (!page) page = std::make_unique<Page>();
  return page->words[at % kPageBytes / 4];
}

void check_size(const Word& word, size_t bytes) {
  if (word.bytes == static_cast<int>(bytes)) return;
  throw Error("a word is stored in one size and loaded in another");
}

uint64_t bit_of(const Fiber* fiber) { return uint64_t{1} << fiber->block->number; }

bool knows(const Known& known, const Version& version) {
  return !version.writer || known[version.writer->block->number] >= version.time;
}

bool counted(const Block* block) { return block->number < kMostBlocks; }

void write(Fiber* fiber, const Store& store) {
  if (scheduler->blocks.size() > kMostBlocks) throw Error("too many blocks share words");
  check_address(store.to, store.bytes);
  Word& word = make_word(store.to);
  if (word.count == 0) {
    word.bytes = static_cast<int>(store.bytes);
    word.versions[word.count++] = {read(store.to, store.bytes), nullptr, 0, nullptr, 0};
  }
  check_size(word, store.bytes);
  // A store comes after what its thread knows, and after what its block has loaded.
  const Version& newest = word.versions[word.count - 1];
  if (newest.writer != fiber && !knows(*store.known, newest) &&
      (newest.loaded_by & bit_of(fiber)) == 0) {
    throw Error("two stores to one word are in no order");
  }
  fiber->stored = ++scheduler->time;
  if (word.count == kVersions) {
    std::move(word.versions + 1, word.versions + kVersions, word.versions);
    --word.count;
  }
  word.versions[word.count++] = {store.data, fiber, fiber->stored, store.released, 0};
  std::memcpy(store.to, &store.data, store.bytes);
}

// ---- stores on their way ----

void check_alive(const Fiber* fiber, const Store& store) {
  const char* to = static_cast<const char*>(store.to);
  for (const Block* block : fiber->block->peers) {
    const bool inside = to >= block->shared && to < block->shared + scheduler->grid.shared;
    if (inside && block->unfinished == 0) throw Error("store to a block that has ended");
  }
}

void deliver(Fiber* fiber, const Store& store) {
  check_alive(fiber, store);
  write(fiber, store);
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
  deliver(fiber, stores[oldest]);
  stores.erase(stores.begin() + static_cast<ptrdiff_t>(oldest));
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

void fence(Fiber* fiber) {
  if (!fiber->stores.empty() && !no_release) {
    for (const Store& store : fiber->stores) deliver(fiber, store);
    fiber->stores.clear();
    std::vector<Fiber*>& storing = scheduler->storing;
    storing.erase(std::remove(storing.begin(), storing.end(), fiber), storing.end());
  }
  if (!counted(fiber->block)) return;
  Known known = *fiber->known;
  if (!no_acquire) join(known, fiber->loaded);
  uint64_t& own = known[fiber->block->number];
  own = std::max(own, fiber->stored);
  if (known != *fiber->known) fiber->known = &scheduler->knowledge.emplace_back(std::move(known));
  if (!no_release) fiber->released = fiber->known;
}

void share(const std::vector<Fiber*>& fibers) {
  if (!counted(fibers[0]->block)) return;
  const Known* before = fibers[0]->known;
  Known all = *before;
  for (const Fiber* fiber : fibers) {
    if (fiber->known != before) join(all, *fiber->known);
    uint64_t& own = all[fiber->block->number];
    own = std::max(own, fiber->stored);
  }
  const Known* known = &scheduler->knowledge.emplace_back(std::move(all));
  for (Fiber* fiber : fibers) fiber->known = known;
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
  Fiber* fiber = scheduler->current;
  if (fiber->stores.empty()) scheduler->storing.push_back(fiber);
  fiber->stores.push_back({to, bytes, slow, read(from, bytes), fiber->known, fiber->released});
}

void load_word(void* to, const void* from, size_t bytes) {
  Scheduler& s = *scheduler;
  check_address(from, bytes);
  Word* word = find_word(from);
  if (!word || word->count == 0) {
    std::memcpy(to, from, bytes);
    return;
  }
  check_size(*word, bytes);
  Fiber* fiber = s.current;
  const uint64_t block = bit_of(fiber);
  int chosen = word->count - 1;
  // Fresh where nothing else can go on: no load stays stale for ever.
  if (s.delivery != Delivery::kSoon && s.wakes == 0 && s.random() % 2 == 0) {
    while (chosen > 0 && !knows(*fiber->known, word->versions[chosen]) &&
           (word->versions[chosen].loaded_by & block) == 0) {
      --chosen;
    }
  }
  Version& version = word->versions[chosen];
  version.loaded_by |= block;
  if (version.released) join(fiber->loaded, *version.released);
  std::memcpy(to, &version.data, bytes);
}

}  // namespace emulator
