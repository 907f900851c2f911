// plan(problem, machine): which algorithm runs, on how many threads, with which tiles, and why.
// Pure: it reads nothing but its arguments and computes nothing but the plan.
#pragma once

#include <cstdint>
#include <string>

#include "problem.h"

namespace fused_lstm {

// What the plan needs to know of the machine.
struct CpuMachine {
  int threads = 1;
  int lanes = 16;            // accumulators in a register
  int pair = 1;              // terms that one multiply-add of the kernels adds: 2 for bfloat16
  int vector_bytes = 64;     // of a register
  int tile_rows = 6;         // rows of a register tile
  double fma_per_cycle = 1;  // vector multiply-adds
  int64_t l2_bytes = 1 << 20;
};

enum class CpuAlgorithm {
  dot,     // rows times weights as they lie: for so few rows that packing would not pay
  panels,  // weights packed into panels of 4 gates x `lanes` units, one register tile per panel
};

// A team of direction_groups x row_groups x unit_groups threads. Each direction group runs its
// directions one after the other; in it, row groups never wait for each other, and unit groups of
// the same rows meet at a barrier every step.
struct CpuPlan {
  CpuAlgorithm algorithm = CpuAlgorithm::panels;
  int direction_groups = 1, row_groups = 1, unit_groups = 1;
  bool fold_input = false;  // W_ih x_t inside the step, instead of batched over a chunk of steps
  int64_t chunk_steps = 1;  // steps whose input projection, or whose gradients, are batched

  int threads() const { return direction_groups * row_groups * unit_groups; }
};

CpuPlan plan_forward(const LstmProblem& problem, const Steps& steps, const CpuMachine& machine);
CpuPlan plan_backward(const LstmProblem& problem, const Steps& steps, const CpuMachine& machine);

// Why the plan is what it is, for people.
std::string explain_forward(const CpuPlan& plan, const Steps& steps);
std::string explain_backward(const CpuPlan& plan);

}  // namespace fused_lstm
