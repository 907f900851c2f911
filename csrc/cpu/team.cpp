#include "team.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "contention.h"

#if defined(__linux__)
#include <dirent.h>
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

// The OpenMP runtime that torch has loaded, by the entry points that GCC's, LLVM's and Intel's all
// have. A pragma would call the runtime of the compiler that built this: with clang a second one,
// with a pool of its own on the same cores.
#if defined(__ELF__)
extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*body)(void*), void* data, unsigned threads,
                                         unsigned flags);
__attribute__((weak)) int omp_get_num_threads();
__attribute__((weak)) int omp_get_thread_num();
}
#endif

namespace fused_lstm::cpu {
namespace {

using Clock = std::chrono::steady_clock;

// To sleep and be woken costs 5 us on a machine of one's own and up to 100 in a virtual one, where
// the processor has to leave its guest. Who spins for about that long waits at most about twice as
// long as whoever knew how long it would take; a step of a layer worth two threads takes less.
constexpr auto kSpinTime = std::chrono::microseconds(200);
constexpr int kPausesPerLook = 32;  // at the clock: one pause is 40 to 140 cycles

// Set in a child whose parent had other threads than the one that forked.
std::atomic<bool> lost_threads{false};

#if defined(__linux__)
bool several_threads = false;  // at the last fork

void count_threads() {
  DIR* tasks = opendir("/proc/self/task");
  int entries = 0;
  while (tasks != nullptr && readdir(tasks) != nullptr) ++entries;
  if (tasks != nullptr) closedir(tasks);
  several_threads = entries != 3;  // ".", ".." and this thread
}
const int at_fork = pthread_atfork(count_threads, nullptr, [] {
  if (several_threads) lost_threads.store(true);
});
#elif defined(__unix__) || defined(__APPLE__)
const int at_fork = pthread_atfork(nullptr, nullptr, [] { lost_threads.store(true); });
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

// Whether the word changed from `value` while this thread spun.
bool changed_soon(const std::atomic<int32_t>& word, int32_t value) {
  Clock::time_point deadline{};
  for (;;) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (word.load(std::memory_order_acquire) != value) return true;
      pause_core();
    }
    const Clock::time_point now = Clock::now();
    if (deadline == Clock::time_point{}) deadline = now + kSpinTime;
    if (now >= deadline) return false;
  }
}

// What this thread has waited in barriers, beyond the time that it spins.
thread_local Clock::duration overdue{};

struct Team {
  int size;
  const std::function<void(int)>& body;
  Barrier end;  // libgomp's own spins far longer before it gives its core away
  bool complete = false;
  Clock::duration in_first{};               // time of the first member in its body
  std::atomic<Clock::rep> longest_wait{0};  // of a member, in all barriers
};

#if defined(__ELF__)
void run_member(void* data) {
  Team& team = *static_cast<Team*>(data);
  if (omp_get_num_threads() != team.size) return;
  const int rank = omp_get_thread_num();
  if (rank == 0) team.complete = true;
  const Clock::time_point begin = Clock::now();
  overdue = {};
  {
    const FlushDenormals flush;
    team.body(rank);
  }
  team.end.wait();
  Clock::rep longest = team.longest_wait.load(std::memory_order_relaxed);
  while (longest < overdue.count() &&
         !team.longest_wait.compare_exchange_weak(longest, overdue.count())) {
  }
  if (rank == 0) team.in_first = Clock::now() - begin;
}

double in_seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }
#endif

}  // namespace

bool has_thread_pool() {
#if defined(__ELF__)
  return GOMP_parallel != nullptr && omp_get_num_threads != nullptr &&
         omp_get_thread_num != nullptr;
#else
  return false;
#endif
}

int available_threads() {
  if (!has_thread_pool() || lost_threads.load(std::memory_order_relaxed) ||
      at::in_parallel_region()) {
    return 1;
  }
  return at::get_num_threads();
}

bool run_team(int size, const std::function<void(int rank)>& body, bool probe) {
  if (size == 1) {
    const FlushDenormals flush;
    body(0);
    return true;
  }
#if defined(__ELF__)
  if (!has_thread_pool() || lost_threads.load(std::memory_order_relaxed)) return false;
  Team team{size, body, Barrier(size)};
  const Clock::time_point begin = Clock::now();
  GOMP_parallel(run_member, &team, unsigned(size), 0);
  const Clock::duration taken = Clock::now() - begin;
  // What is not within the members is the runtime's own wait for them.
  const Clock::duration outside = taken - team.in_first;
  const Clock::duration waited = Clock::duration(team.longest_wait.load()) +
                                 (outside > kSpinTime ? outside : Clock::duration{});
  if (team.complete && !probe) record_team(size, in_seconds(taken), in_seconds(waited));
  return team.complete;
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
  if (changed_soon(phase_, phase)) return;
  const Clock::time_point begin = Clock::now();
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  while (phase_.load(std::memory_order_seq_cst) == phase) sleep_while(phase_, phase);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  overdue += Clock::now() - begin;
}

#if defined(__x86_64__)
FlushDenormals::FlushDenormals() : before_(_mm_getcsr()) {
  _mm_setcsr(unsigned(before_) | 0x8040u);  // results (bit 15) and operands (bit 6)
}
FlushDenormals::~FlushDenormals() { _mm_setcsr(unsigned(before_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
  asm volatile("mrs %0, fpcr" : "=r"(before_));
  asm volatile("msr fpcr, %0" : : "r"(before_ | (uint64_t(1) << 24)));  // FZ: both
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#else
FlushDenormals::FlushDenormals() : before_(0) {}
FlushDenormals::~FlushDenormals() {}
#endif

}  // namespace fused_lstm::cpu
