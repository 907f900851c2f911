#include "plan.h"

#include <algorithm>
#include <cstdio>

namespace fused_lstm {
namespace {

// Costs in cycles of one core, from the instruction counts of the kernels and the bandwidths of
// recent x86 cores. Only their ratios matter, and only near a tie.
constexpr double kFmaPerCycle = 1;       // vector multiply-adds
constexpr double kL2BytesPerCycle = 40;  // weights that stay in a core's own cache
constexpr double kL3BytesPerCycle = 12;  // weights that stream from the cache all cores share
constexpr double kGateCycles = 130;      // activations of `lanes` units of one row
constexpr double kPackCycles = 6;        // packing one vector of weights
constexpr double kDotOverhead = 1.25;    // of sums across lanes, against the products themselves
constexpr int64_t kDotRows = 4;          // that share one pass over weights as they lie
constexpr double kCallCycles = 60;       // one kernel call
constexpr double kBarrierCycles = 3000;  // one barrier of a team
constexpr double kForkCycles = 20000;    // starting and joining a team
constexpr int64_t kSampledSteps = 64;    // of a packed input

// Gradients of this many rows are batched: a register tile of weight gradients is loaded and
// stored once per chunk, 8 vectors for 4 * rows multiply-adds, and 1024 rows of a panel (256 KiB)
// still fit the L2 cache.
constexpr int64_t kGradientRows = 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One product of a step: `rows` rows against `panels` panels of `k` entries.
double product_cycles(const CpuMachine& m, int64_t rows, int64_t panels, int64_t k) {
  if (rows == 0 || panels == 0) return 0;
  const double bytes = 4.0 * m.vector_bytes * k;  // of one panel
  const bool fits = bytes * panels <= 0.75 * m.l2_bytes;
  const int64_t tiles = ceil_div(rows, m.tile_rows);
  const double first = bytes / (fits ? kL2BytesPerCycle : kL3BytesPerCycle);
  const double rest = bytes / kL2BytesPerCycle;
  const double tile_fma = 4.0 * k * rows / tiles / m.fma_per_cycle;
  return panels *
         (std::max(first, tile_fma) + (tiles - 1) * std::max(rest, tile_fma) + kCallCycles);
}

// One vector of weights against one of `batch` rows, of which `tile` share a load.
double vector_cycles(const CpuMachine& m, int64_t batch, int64_t tile) {
  const double load = m.vector_bytes / kL2BytesPerCycle;
  return std::max(load / std::clamp<int64_t>(batch, 1, tile), 1 / m.fma_per_cycle);
}

struct Shape {
  int64_t panels;      // of the recurrent product
  int64_t k;           // its depth
  int64_t gate_units;  // vectors of units per row
};

// Cycles of the recurrent loop of one direction for the slowest member of the team.
double loop_cycles(const CpuMachine& m, const Steps& steps, const Shape& shape, int row_groups,
                   int unit_groups) {
  const int64_t panels = ceil_div(shape.panels, unit_groups);
  const int64_t gates = ceil_div(shape.gate_units, unit_groups);
  auto step = [&](int64_t size) {
    const int64_t rows = ceil_div(size, row_groups);
    return product_cycles(m, rows, panels, shape.k) + gates * rows * kGateCycles +
           (unit_groups > 1 ? kBarrierCycles : 0);
  };
  if (!steps.packed()) return steps.steps() * step(steps.batch());
  const int64_t samples = std::min(steps.steps(), kSampledSteps);
  double total = 0;
  for (int64_t i = 0; i < samples; ++i) total += step(steps.size(i * steps.steps() / samples));
  return total * steps.steps() / samples;
}

// The cheapest way to spread the loop over threads. `other` is work that any split shares evenly.
void choose_team(const CpuMachine& m, const Steps& steps, const LstmProblem& p, const Shape& shape,
                 double other, CpuPlan* plan) {
  double best = 0;
  for (int threads = 1; threads <= m.threads; ++threads) {
    const bool last = threads == m.threads;
    if (!last && (threads & (threads - 1)) != 0) continue;  // powers of two and all of them
    const int direction_groups = threads % p.directions == 0 ? p.directions : 1;
    const int group = threads / direction_groups;
    for (int rows = 1; rows <= group; ++rows) {
      if (group % rows != 0) continue;
      const int units = group / rows;
      if (rows > std::max<int64_t>(1, p.batch) || units > shape.panels) continue;
      const double loops = double(p.directions) / direction_groups;
      const double cycles = loops * loop_cycles(m, steps, shape, rows, units) + other / threads +
                            (threads > 1 ? kForkCycles : 0);
      if (best == 0 || cycles < best) {
        best = cycles;
        plan->direction_groups = direction_groups;
        plan->row_groups = rows;
        plan->unit_groups = units;
      }
    }
  }
}

std::string describe_team(const CpuPlan& plan) {
  if (plan.threads() == 1) return "one thread: more would cost more to start than they save";
  std::string text = std::to_string(plan.threads()) + " threads:";
  if (plan.direction_groups > 1) text += " both directions at once;";
  if (plan.row_groups > 1) {
    text += " the batch in " + std::to_string(plan.row_groups) + " parts, no barrier;";
  }
  if (plan.unit_groups > 1) {
    text += " the hidden units in " + std::to_string(plan.unit_groups) +
            " parts, one barrier per step, for the rows are few;";
  }
  text.pop_back();
  return text;
}

}  // namespace

CpuPlan plan_forward(const LstmProblem& p, const Steps& steps, const CpuMachine& m) {
  CpuPlan plan;
  const int64_t k = p.input_size + p.output_size();
  const int64_t panels = ceil_div(p.hidden_size, m.lanes);
  const double weights = 4.0 * p.hidden_size * k / (m.lanes * m.pair);  // vectors
  const double rows = double(steps.rows());

  // Packed, the input's rows of all steps share a tile; the recurrent ones, and both where weights
  // are read as they lie, only those of one step.
  const double input_share = double(p.input_size) / k;
  const double dot = kDotOverhead * rows * weights * vector_cycles(m, p.batch, kDotRows);
  const double packed =
      weights * (kPackCycles + rows * (input_share / m.fma_per_cycle +
                                       (1 - input_share) * vector_cycles(m, p.batch, m.tile_rows)));
  const bool few = p.proj_size == 0 && dot < packed;
  plan.algorithm = few ? CpuAlgorithm::dot : CpuAlgorithm::panels;

  const double other =
      few ? 0
          : p.directions * (weights * kPackCycles +
                            rows * panels * 4.0 * p.input_size / m.pair / m.fma_per_cycle);
  const Shape shape{panels, (few ? k : p.output_size()) / m.pair, panels};
  choose_team(m, steps, p, shape, other, &plan);

  const int64_t member_rows = ceil_div(std::max<int64_t>(p.batch, 1), plan.row_groups);
  const int64_t member_panels = ceil_div(panels, plan.unit_groups);
  plan.fold_input = member_rows >= 4 * m.tile_rows;
  const int64_t step_bytes = std::max<int64_t>(1, member_rows * member_panels * 4 * m.vector_bytes);
  plan.chunk_steps =
      std::clamp<int64_t>(m.l2_bytes / 2 / step_bytes, 1, std::max<int64_t>(1, steps.steps()));
  return plan;
}

CpuPlan plan_backward(const LstmProblem& p, const Steps& steps, const CpuMachine& m) {
  CpuPlan plan;
  const int64_t k = p.input_size + p.output_size();
  const double products = 2.0 * steps.rows() * 4 * p.hidden_size * k / (m.lanes * m.pair);
  const Shape shape{ceil_div(p.output_size(), 4 * m.lanes), 4 * p.hidden_size / m.pair,
                    ceil_div(p.hidden_size, m.lanes)};
  choose_team(m, steps, p, shape, p.directions * products / m.fma_per_cycle, &plan);
  plan.chunk_steps = std::clamp<int64_t>(kGradientRows / std::max<int64_t>(1, p.batch), 1,
                                         std::max<int64_t>(1, steps.steps()));
  return plan;
}

std::string explain_forward(const CpuPlan& plan, const Steps& steps) {
  const std::string team = describe_team(plan);
  if (plan.algorithm == CpuAlgorithm::dot) {
    return "weights read as they lie, for packing them would cost more than " +
           std::to_string(steps.rows()) + " rows save; " + team;
  }
  if (plan.fold_input) return "input projection inside the step; " + team;
  return "input projection batched over " + std::to_string(plan.chunk_steps) +
         " steps, as many as half the L2 cache holds; " + team;
}

std::string explain_backward(const CpuPlan& plan) {
  return "weight gradients batched over " + std::to_string(plan.chunk_steps) + " steps; " +
         describe_team(plan);
}

}  // namespace fused_lstm
