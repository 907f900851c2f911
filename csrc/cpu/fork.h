// Mutexes that a call takes, over a fork: a child has only the thread that forked, and would wait
// forever for a mutex that another thread of its parent held.
#pragma once

#include <mutex>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fused_lstm::cpu {

// Called once for each such mutex, which no thread may hold while it waits for another of them: a
// fork waits until it is free. Returns 0.
template <std::mutex& mutex>
int free_over_fork() {
#if defined(__unix__) || defined(__APPLE__)
  return pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
#else
  return 0;
#endif
}

}  // namespace fused_lstm::cpu
