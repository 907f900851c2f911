// plan(problem, machine): which algorithm runs, on how many threads, split how, and why. Pure: it
// reads nothing but its arguments and computes nothing but the plan.
//
// No fact of the machine may change a bit of a result: it decides who computes a sum and when, not
// in which order its terms are added. What does change that order, the choice between `dot` and
// `panels` and the length of a chunk of the backward pass, rests on the shape and the instruction
// set alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "machine.h"
#include "problem.h"

namespace fused_lstm::cpu {

enum class Algorithm {
  dot,     // rows times weights as they lie: for so few rows that packing would not pay
  panels,  // weights packed into panels of 4 gates x `lanes` units, one register tile per panel
};

// A team of direction_groups x row_groups x unit_groups threads. Each direction group runs its
// directions one after the other; in it, unit groups of the same rows meet at a barrier every step,
// with a projection at two, and row groups wait for each other only in the backward pass, before
// and after the products of a chunk.
struct CpuPlan {
  Algorithm algorithm = Algorithm::panels;
  int direction_groups = 1, row_groups = 1, unit_groups = 1;
  bool fold_input = false;  // W_ih x_t inside the step, instead of batched over a chunk of steps
  int64_t chunk_steps = 1;  // steps whose input projection, or whose gradients, are batched
  int64_t chunk_rows = 0;   // of several steps whose gradients are batched, at most; 0: any number
  bool pack_late = false;   // a panel where and when it is multiplied, for it is needed only once
  bool in_place = false;    // backward reads weights as they lie: it needs each only once
  double predicted_ns = 0;

  int threads() const { return direction_groups * row_groups * unit_groups; }
};

// What somebody asks of a plan, for tests and measurements; what is left open is chosen as ever,
// and what does not come up is not looked at: the chunk of an input inside the step, a step folded
// or not where there is only one, the algorithm of a stream, whose weights are packed already.
struct PlanRequest {
  std::optional<Algorithm> algorithm;
  std::optional<int> directions, rows, units;  // groups
  std::optional<bool> fold, in_place;
  std::optional<int64_t> chunk;

  // "rows=2 units=1 fold=0 chunk=4 algorithm=panels in_place=1", any subset in any order; "" for
  // nothing. Throws std::invalid_argument that says what is wrong.
  static PlanRequest parse(const std::string& text);

  bool asks_for_a_team() const { return directions || rows || units; }
};

// Throw std::invalid_argument where a request does not fit the problem or the threads at hand.
CpuPlan plan_forward(const LstmProblem& problem, const Steps& steps, const CpuMachine& machine,
                     const PlanRequest& request = {});
CpuPlan plan_backward(const LstmProblem& problem, const Steps& steps, const CpuMachine& machine,
                      const PlanRequest& request = {});

// Why the plan is what it is, for people.
std::string explain_forward(const CpuPlan& plan, const Steps& steps);
std::string explain_backward(const CpuPlan& plan);

}  // namespace fused_lstm::cpu
