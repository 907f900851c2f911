#include "team.h"

#include <ATen/Parallel.h>

#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_lstm::cpu {
namespace {

// A step of the smallest layers worth two threads takes some 10 us, and a thread that sleeps needs
// about as long to wake: spin that long. One pause is 40 to 140 cycles.
constexpr int kSpins = 500;

std::atomic<bool> forked{false};

#if defined(__unix__) || defined(__APPLE__)
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif

void pause_core() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void sleep_while(std::atomic<int32_t>& word, int32_t value) {
#if defined(__linux__)
  static_assert(sizeof(word) == sizeof(int32_t), "the futex is the atomic itself");
  syscall(SYS_futex, reinterpret_cast<int32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr,
          0);
#else
  if (word.load() == value) std::this_thread::yield();
#endif
}

void wake_all(std::atomic<int32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<int32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr,
          nullptr, 0);
#else
  (void)word;
#endif
}

}  // namespace

int available_threads() {
#if defined(_OPENMP)
  if (forked.load(std::memory_order_relaxed) || at::in_parallel_region()) return 1;
  return at::get_num_threads();
#else
  return 1;
#endif
}

bool run_team(int size, const std::function<void(int rank)>& body) {
  if (size == 1) {
    body(0);
    return true;
  }
#if defined(_OPENMP)
  bool complete = false;
#pragma omp parallel num_threads(size)
  {
    if (omp_get_num_threads() == size) {
      const int rank = omp_get_thread_num();
      if (rank == 0) complete = true;
      body(rank);
    }
  }
  return complete;
#else
  return false;
#endif
}

void Barrier::wait_for_others() {
  const int32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) wake_all(phase_);
    return;
  }
  for (int i = 0; i < kSpins; ++i) {
    if (phase_.load(std::memory_order_acquire) != phase) return;
    pause_core();
  }
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (phase_.load(std::memory_order_seq_cst) == phase) sleep_while(phase_, phase);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace fused_lstm::cpu
