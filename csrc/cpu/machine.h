// Facts of the machine that the planner rests on: measured where it runs, once, or given by a test.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"

namespace fused_lstm::cpu {

// What something costs or moves with two threads and with `most` of them; between the two it is
// taken to follow the logarithm of the number of threads.
struct ByTeam {
  double two = 0, all = 0;
  int most = 2;

  double at(int threads) const;
};

// Times are nanoseconds of one core, rates bytes per nanosecond and core. The defaults are those of
// a server core of 2020 at 3 GHz.
struct CpuMachine {
  int threads = 1;  // that a team may have

  // The kernels of one element type under one instruction set.
  int lanes = 16;             // accumulators in a register
  int pair = 1;               // terms that one multiply-add of the kernels adds: 2 for bfloat16
  int vector_bytes = 64;      // of a register
  int tile_rows = 6;          // rows of a register tile
  bool few_rows = true;       // matrices are multiplied as they lie, too
  double multiply_ns = 0.33;  // one vector multiply-add in full tiles on panels in L2
  double gate_ns = 40;        // gates, c and h of `lanes` units of one row
  double gradient_ns = 25;    // and their gradients
  double pack_ns = 2;         // one vector of weights packed into a panel

  // Caches.
  int64_t l2_bytes = 1 << 20;       // of one core
  int64_t shared_bytes = 32 << 20;  // of the cache that cores share
  double l2_rate = 100;
  double shared_rate = 30;  // one core reading alone
  ByTeam shared_rates{30, 30, 2};
  // Not measured: to fill more than the caches hold would take longer than the plan can save.
  double memory_rate = 6;

  // Teams.
  ByTeam barrier_ns{500, 500, 2};  // everybody waits for everybody
  ByTeam fork_ns{3000, 3000, 2};   // starting a team and waiting for its end

  double rate_of_shared(int team) const { return team == 1 ? shared_rate : shared_rates.at(team); }
};

// Names and values of all facts, for people and for tests; set_fact takes the same names.
std::vector<std::pair<std::string, double>> list_facts(const CpuMachine& machine);
bool set_fact(CpuMachine& machine, const std::string& name, double value);

// Whether two threads are so much slower than one, or so late at a barrier, that others may have
// had their cores or their cache while that was measured. On some machines it is so: where threads
// share a core.
bool may_be_disturbed(const CpuMachine& machine);

// Teams as in whichever of the two had less to wait for: what disturbs makes slower.
void keep_best_teams(const CpuMachine& again, CpuMachine* machine);

// This machine, for these kernels, with `threads` allowed. The first call for each of them
// measures: a few milliseconds. Later ones measure teams again, ever more rarely, while what is
// known of them may be disturbed: a plan that rests on it would be slow for as long as the process
// lives.
template <class T>
CpuMachine machine(const Kernels<T>& kernels, int threads);

}  // namespace fused_lstm::cpu
