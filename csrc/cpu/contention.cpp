#include "contention.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <mutex>
#include <string>

#if defined(__linux__)
#include <dirent.h>
#include <unistd.h>
#endif

namespace fused_lstm::cpu {
namespace {

// What was longer ago says little of who uses the cores now: the system moves threads within a few
// of its time slices, of 1 to 10 ms each.
constexpr double kWindow = 0.1;
// A wait as long as this is a lost core; so is none of members that have unequal shares. One may be
// an accident, which the next call does not meet again; of a team that is tried again it is what
// was to be found out.
constexpr double kStall = 0.5e-3, kAccidents = 1.5, kAccidentsOfTrial = 0.5;
// Half the team takes at most twice as long as the whole one without its waits: where this share of
// the time was waiting, at most 2 * (1 - 0.6) = 0.8 of what the whole one takes with them. More
// than half, as members that take turns wait that long for the last of three problems on two
// threads.
constexpr double kWorth = 0.6;
// Trying the larger team again costs a stall, of 5 ms or so: a twentieth of the time at first, and
// ever less while they come.
constexpr double kHold = 0.1, kLongestHold = 1.6;
// Where cores are missing the trial waits until they are free, but no longer than this: what is
// free is counted over the whole machine, of which this process may have cores for itself.
constexpr double kPatience = 2;

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

#if defined(__linux__)
// Threads of this process that run or are ready to.
int running_here(const std::string& proc) {
  const std::string folder = proc + "/self/task/";
  DIR* tasks = opendir(folder.c_str());
  if (tasks == nullptr) return 0;
  int running = 0;
  while (const dirent* task = readdir(tasks)) {
    if (task->d_name[0] == '.') continue;
    std::ifstream file(folder + task->d_name + "/stat");
    std::string line;  // "id (name) state ...", where a name may hold anything
    std::getline(file, line);
    const size_t name_end = line.rfind(')');
    if (name_end != std::string::npos && line.compare(name_end, 3, ") R") == 0) ++running;
  }
  closedir(tasks);
  return running;
}
#endif

int cores_for_this_process() {
#if defined(__linux__)
  return free_cores("/proc", int(sysconf(_SC_NPROCESSORS_ONLN)));
#else
  return std::numeric_limits<int>::max();
#endif
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
  const bool trial = now < tried_ + kWindow;
  if (stalls_ < (trial ? kAccidentsOfTrial : kAccidents) || waited_ < kWorth * taken_) return;
  const bool again = now < until_ + hold_;
  hold_ = again ? std::min(2 * hold_, kLongestHold) : kHold;
  until_ = now + hold_;
  patience_ = now + kPatience;
  if (limit_ == 0) full_ = size;
  limit_ = std::max(1, size / 2);
  forget();
}

int Contention::threads(double now, int available, const std::function<int()>& free) {
  while (limit_ > 0 && now >= until_) {
    const int next = std::min(2 * limit_, full_);
    if (now < patience_ && free() < std::min(next, available)) {
      until_ = now + kHold;
      break;
    }
    limit_ = next < full_ ? next : 0;
    until_ += kHold;
    tried_ = now;
    forget();
  }
  return limit_ > 0 ? std::min(limit_, available) : available;
}

int free_cores(const std::string& proc, int cores) {
#if defined(__linux__)
  std::ifstream file(proc + "/loadavg");
  std::string average;
  int running;  // or ready to, on the whole machine
  if (!(file >> average >> average >> average >> running)) return cores;
  return running <= 1 ? cores : cores - std::max(0, running - running_here(proc));
#else
  return cores;
#endif
}

void record_team(int size, double taken, double waited) {
  if (!adapts()) return;
  const std::lock_guard<std::mutex> lock(mutex);
  of_process.record(seconds_now(), size, taken, waited);
}

int uncontended_threads(int available) {
  if (available == 1 || !adapts()) return available;
  const std::lock_guard<std::mutex> lock(mutex);
  return of_process.threads(seconds_now(), available, cores_for_this_process);
}

}  // namespace fused_lstm::cpu
