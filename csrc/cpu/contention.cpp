#include "contention.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <string>

namespace fused_lstm::cpu {
namespace {

// What was longer ago says little of who uses the cores now: the system moves threads within a few
// of its time slices, of 1 to 10 ms each.
constexpr double kWindow = 0.1;
// A wait as long as this is a lost core; so is none of members that have unequal shares. One may be
// an accident, which the next call does not meet again.
constexpr double kStall = 0.5e-3, kAccidents = 1.5;
// Half the team takes at most twice as long as the whole one without its waits: where this share of
// the time was waiting, at most 2 * (1 - 0.6) = 0.8 of what the whole one takes with them. More
// than half, as members that take turns wait that long for the last of three problems on two
// threads.
constexpr double kWorth = 0.6;
// Trying the larger team again costs a few stalls, of 5 ms or so each: a tenth of the time at
// first, and ever less while they come.
constexpr double kHold = 0.1, kLongestHold = 1.6;

double seconds_now() {
  using Clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

bool adapts() {
  static const bool on = [] {
    const char* value = std::getenv("FUSED_LSTM_ADAPT_THREADS");
    return value == nullptr || std::string(value) != "0";
  }();
  return on;
}

std::mutex mutex;
Contention of_process;

}  // namespace

void Contention::forget() { taken_ = waited_ = stalls_ = 0; }

void Contention::record(double now, int size, double taken, double waited) {
  if (limit_ > 0 && size > limit_) return;  // begun before it was limited, or forced: nothing new
  const double keep = std::exp((last_ - now) / kWindow);
  last_ = now;
  taken_ = taken_ * keep + taken;
  waited_ = waited_ * keep + waited;
  stalls_ = stalls_ * keep + (waited > kStall ? 1 : 0);
  if (stalls_ < kAccidents || waited_ < kWorth * taken_) return;
  const bool again = now < until_ + hold_;
  hold_ = again ? std::min(2 * hold_, kLongestHold) : kHold;
  until_ = now + hold_;
  if (limit_ == 0) full_ = size;
  limit_ = std::max(1, size / 2);
  forget();
}

int Contention::threads(double now, int available) {
  while (limit_ > 0 && now >= until_) {
    limit_ = 2 * limit_ < full_ ? 2 * limit_ : 0;
    until_ += kHold;
    forget();
  }
  return limit_ > 0 ? std::min(limit_, available) : available;
}

void record_team(int size, double taken, double waited) {
  if (!adapts()) return;
  const std::lock_guard<std::mutex> lock(mutex);
  of_process.record(seconds_now(), size, taken, waited);
}

int uncontended_threads(int available) {
  if (available == 1 || !adapts()) return available;
  const std::lock_guard<std::mutex> lock(mutex);
  return of_process.threads(seconds_now(), available);
}

}  // namespace fused_lstm::cpu
