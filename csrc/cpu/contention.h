// How many threads a team should have while others use the cores too: other processes, or other
// threads of this one. A member that has lost its core keeps the others waiting for as long as the
// system lets someone else run: some milliseconds, the length of many calls.
#pragma once

#include <functional>
#include <string>

namespace fused_lstm::cpu {

// What came of teams in the last moments, and what follows from it. Times are in seconds.
class Contention {
 public:
  // A team of `size` took `taken` seconds until `now`, `waited` of which its members waited for one
  // of them, beyond what they wait for one that has its core.
  void record(double now, int size, double taken, double waited);

  // Of the threads at hand those that a team should have. `free` is asked before a larger team is
  // tried again: of how many cores nobody else has use.
  int threads(double now, int available, const std::function<int()>& free);

 private:
  void forget();

  double taken_ = 0, waited_ = 0, stalls_ = 0;  // of the last moments
  double last_ = 0;                             // record
  int limit_ = 0, full_ = 0;     // threads of a team now, and of the one halved first; 0: any
  double until_ = 0, hold_ = 0;  // when halved last: until when, and for how long
  double patience_ = 0;          // and until when cores must be free
  double tried_ = 0;             // a larger team, last
};

// Of so many cores those that no other process has use for; all where the system does not say.
// Threads of this process do not count: those of a pool spin for some milliseconds after their last
// work, and are the members of the next team. `proc` is the folder "/proc". 10 us, and as much for
// every thread where more than one runs.
int free_cores(const std::string& proc, int cores);

// The same of this process, by its clock, unless FUSED_LSTM_ADAPT_THREADS=0.
void record_team(int size, double taken, double waited);
int uncontended_threads(int available);

}  // namespace fused_lstm::cpu
