// A team of threads from PyTorch's OpenMP pool that run one function together and may wait for
// each other.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace fused_lstm::cpu {

// Whether the OpenMP runtime that torch uses was found in this process.
bool has_thread_pool();

// Threads that a team may have here: PyTorch's own count, but 1 inside another parallel region, and
// in a process forked from one that had several threads (they did not come along, and a pool that
// waits for them waits forever).
int available_threads();

// Runs body(rank) for ranks 0..size-1 at the same time, with denormal numbers flushed to zero.
// Returns false, having run nothing, where that many threads are not to be had: the caller then
// runs with a team of 1. All members have finished when it returns. How long they waited for each
// other counts for the size of later teams (contention.h), unless this is a probe.
bool run_team(int size, const std::function<void(int rank)>& body, bool probe = false);

// A barrier for `size` threads. Waits by spinning for a bounded time, then sleeps, so that a thread
// that lost its core to another process gets one back.
class alignas(64) Barrier {
 public:
  explicit Barrier(int size = 1) : size_(size) {}
  Barrier(const Barrier& other) : size_(other.size_) {}

  void wait() {
    if (size_ > 1) wait_for_others();
  }

 private:
  void wait_for_others();

  int size_;
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<int32_t> phase_{0};
  std::atomic<int32_t> sleepers_{0};
};

// While it lives, results and operands too small for a normal number count as zero on this thread:
// on most processors each costs over a hundred cycles, and gradients that fade over time are made
// of them.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  uint64_t before_;  // the control register as it was
};

}  // namespace fused_lstm::cpu
