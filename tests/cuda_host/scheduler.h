// What the emulator knows while a grid runs; for its own sources only.
#pragma once

#include <deque>
#include <exception>
#include <memory>
#include <random>
#include <unordered_map>

#include "context.h"
#include "hw.cuh"

namespace emulator {

constexpr size_t kStackBytes = 64 * 1024;

// Of each block of the grid, the time up to which its stores are known. Blocks, not threads: what
// one of its threads makes known counts for all that the block had stored by then.
using Known = std::vector<uint64_t>;

struct Fiber;
struct Block;

struct Store {
  void* to;
  size_t bytes;
  bool slow;
  uint64_t data;
  const Known* known;     // to the thread that stores
  const Known* released;  // by its last fence: whoever loads this, and then fences, knows as much
};

// A value that a word had.
struct Version {
  uint64_t data;
  const Fiber* writer;  // nullptr: nobody, since before the launch
  uint64_t time;        // when it reached memory
  const Known* released;
  uint64_t loaded_by;  // bit b: a thread of block b has
};
constexpr int kVersions = 4;        // of a word that are kept
constexpr size_t kMostBlocks = 64;  // of a grid in which blocks share words

// A word to which other blocks store: its latest values, the newest last.
struct Word {
  int bytes, count;  // count 0: none has been stored here
  Version versions[kVersions];
};
constexpr uintptr_t kPageBytes = 1024;
struct Page {
  Word words[kPageBytes / 4];
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  Block* block = nullptr;
  int index = 0;  // thread of its block
  bool done = false;
  std::vector<Store> stores;     // on their way to memory
  uint64_t stored = 0;           // time of the last that arrived
  const Known* known = nullptr;  // as of Store
  const Known* released = nullptr;
  Known loaded;  // what its next fence adds to what it knows
};

struct Meeting {  // one warp's collective
  int arrived = 0;
  const char* name = nullptr;
  void* arguments[32];
};

struct Cluster {
  size_t threads = 0;
  std::vector<Fiber*> at_barrier;
};

struct Block {
  int x = 0, y = 0, rank = 0;
  size_t number = 0;  // of the grid
  Cluster* cluster = nullptr;
  std::vector<Block*> peers;  // blocks of the cluster by rank
  char* shared = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Meeting> meetings;  // per warp
  std::vector<Fiber*> at_barrier;
  std::vector<Fiber*> runnable;
  int unfinished = 0;  // threads
};

enum class Policy { kUniform, kPriorities, kSticky };
// Of stores: at once, now and then, when nothing else can go on, or those of every second line of
// source only after all others.
enum class Delivery { kSoon, kLate, kLast, kUneven };

struct Scheduler {
  Grid grid;
  const std::function<void()>* body = nullptr;
  std::vector<Block> blocks;
  std::vector<Cluster> clusters;
  std::vector<Fiber*> pollers;
  std::vector<Fiber*> storing;   // fibers with stores on their way
  std::vector<int> store_lines;  // of the source, in the order in which they were reached
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;  // of words, by address
  std::deque<Known> knowledge;                                 // what known and released point to
  uint64_t time = 0;                                           // stores that have arrived
  int wakes = 0;  // of all pollers, since a store was delivered
  std::vector<uint64_t> priority;
  std::mt19937_64 random;
  Policy policy = Policy::kUniform;
  Delivery delivery = Delivery::kSoon;
  bool newest_first = false;
  size_t last_block = 0;
  Context context;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  Fiber* current = nullptr;
  std::exception_ptr failure;
};

extern Scheduler* scheduler;

void make_runnable(Fiber* fiber);

// ---- memory.cpp ----

// What memory does by itself between two turns of threads.
void deliver_some();
// A fence of one thread: every store in order, and it knows what it has loaded.
void fence(Fiber* fiber);
// A barrier: all of them know what one of them does.
void share(const std::vector<Fiber*>& fibers);
// With no thread left to run: true if something has changed since they all went to sleep.
bool wake_any();

}  // namespace emulator
