#include "take_turns.h"

#include <ATen/core/LegacyTypeDispatch.h>

#include <atomic>
#include <exception>
#include <mutex>
#include <optional>

#include "contention.h"
#include "precision.h"
#include "team.h"

namespace fused_lstm::cpu {

void take_turns(int64_t count, const std::function<void(int64_t k)>& run) {
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const bool exact = ExactProducts::alive() > 0;
  const auto work = [&](int) {
    // This thread may be another than the caller.
    const at::AutoDispatchBelowADInplaceOrView guard;
    std::optional<ExactProducts> also_here;
    if (exact) also_here.emplace();
    try {
      for (int64_t k = next++; k < count; k = next++) run(k);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  };
  const int threads = uncontended_threads(available_threads());
  if (count < threads || !run_team(threads, work)) work(0);
  if (failure != nullptr) std::rethrow_exception(failure);
}

}  // namespace fused_lstm::cpu
