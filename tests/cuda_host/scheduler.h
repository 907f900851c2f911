// What the emulator knows while a grid runs; for its own sources only.
#pragma once

#include <ucontext.h>

#include <exception>
#include <memory>
#include <random>

#include "hw.cuh"

namespace emulator {

constexpr size_t kStackBytes = 64 * 1024;

struct Store {
  void* to;
  size_t bytes;
  bool slow;
  unsigned char data[8];
};

struct Block;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;
  Block* block = nullptr;
  int index = 0;  // thread of its block
  bool done = false;
  std::vector<Store> stores;  // on their way to memory
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
  int wakes = 0;                 // of all pollers, since a store was delivered
  std::vector<uint64_t> priority;
  std::mt19937_64 random;
  Policy policy = Policy::kUniform;
  Delivery delivery = Delivery::kSoon;
  bool newest_first = false;
  size_t last_block = 0;
  ucontext_t context;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  Fiber* current = nullptr;
  std::exception_ptr failure;
};

extern Scheduler* scheduler;

void make_runnable(Fiber* fiber);

// ---- stores.cpp ----

// What memory does by itself between two turns of threads.
void deliver_some();
// Every store of one thread, in order.
void deliver_all(Fiber* fiber);
// With no thread left to run: true if something has changed since they all went to sleep.
bool wake_any();

}  // namespace emulator
