#include "plan.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "ranges.h"

namespace fused_lstm::cpu {
namespace {

// A team has to be predicted this much faster than one of half its size: threads that gain less are
// better left to whoever else wants them.
constexpr double kTimePerDoubling = 1 / 1.15;

constexpr double kL2Share = 0.75;  // of L2 that weights can hold on to beside rows and gates
constexpr double kOverlap = 0.2;   // of the shorter of loading and multiplying that is not hidden
constexpr double kSkew = 0.02;     // of a step: members never come to a barrier together
// Of the cache that cores share: what weights may fill without harm to all else that passes through
// it, and what it costs, of the time, if they fill the rest.
constexpr double kFree = 0.3, kCrowding = 0.1;
constexpr double kEarly = 1.5;         // times the cost of packing, if panels leave the cache again
constexpr double kCallNs = 15;         // one kernel call
constexpr int64_t kSampledSteps = 16;  // of a packed input

// Costs by count, in multiply-adds of one vector. All but kSumCost decide between `dot` and
// `panels`.
constexpr double kPackCost = 6;          // packing one vector of weights
constexpr double kSumCost = 8;           // a tile more: zeroing, joining and storing one vector
constexpr double kDotOverhead = 1.25;    // of sums across lanes, against the products themselves
constexpr double kL2BytesPerCycle = 40;  // a vector of weights from L2

// Gradients of this many rows are batched: a register tile of weight gradients is loaded and
// stored once per chunk, 8 vectors for 4 * rows multiply-adds, and 1024 rows of a panel (256 KiB)
// still fit the L2 cache.
constexpr int64_t kGradientRows = 1024;

// What one direction does at every step, in vectors of this machine.
struct Loop {
  int64_t panels, entries;    // of the recurrent product: 4 vectors wide, `entries` deep
  int64_t cells;              // vectors of units per row
  double cell_ns;             // for each of them
  int barriers;               // where several members share the rows
  int64_t input_entries = 0;  // further depth, of an input projection inside the step
};

struct Split {
  int directions, rows, units;
  int threads() const { return directions * rows * units; }
};

double panel_bytes(const CpuMachine& m, int64_t entries) {
  return 4.0 * m.vector_bytes * double(entries);
}

// Multiplying `rows` rows with panels that lie in L2.
double product_ns(const CpuMachine& m, int64_t rows, int64_t panels, int64_t entries) {
  if (rows == 0 || panels == 0 || entries == 0) return 0;
  const double tiles = double(ceil_div(rows, m.tile_rows));
  const double multiply = 4.0 * entries * (rows / tiles) * m.multiply_ns;
  const double load = panel_bytes(m, entries) / m.l2_rate;
  return panels * (tiles * std::max(multiply, load) + kCallNs);
}

// Bringing into L2 what a member needs at every step. Panels are walked up and down by turns, so
// what L2 holds of them at the end of a step is what the next step begins with.
double stream_ns(const CpuMachine& m, double bytes, double bytes_of_team, int team) {
  const double missing = std::max(0.0, bytes - kL2Share * double(m.l2_bytes));
  double rate = m.rate_of_shared(team);
  if (bytes_of_team > double(m.shared_bytes)) rate = std::min(rate, m.memory_rate);
  return missing / rate;
}

double overlapped(double a, double b) { return std::max(a, b) + kOverlap * std::min(a, b); }

// One step of the slowest member, `size` rows alive.
double step_ns(const CpuMachine& m, const Loop& loop, const Split& split, int64_t size) {
  const int64_t rows = ceil_div(size, split.rows), panels = ceil_div(loop.panels, split.units);
  const int64_t entries = loop.entries + loop.input_entries;
  const double bytes = panels * panel_bytes(m, entries);
  const double everybody = split.directions * loop.panels * panel_bytes(m, entries);
  const double alone = overlapped(product_ns(m, rows, panels, entries),
                                  stream_ns(m, bytes, everybody, split.threads())) +
                       double(ceil_div(loop.cells, split.units) * rows) * loop.cell_ns;
  if (split.units == 1) return alone;
  return alone * (1 + kSkew) + loop.barriers * m.barrier_ns.at(split.units);
}

double loop_ns(const CpuMachine& m, const Steps& steps, const Loop& loop, const Split& split) {
  // Steps that do not follow one another need no barrier: the team's end is one.
  Loop one = loop;
  if (steps.steps() == 1) one.barriers -= 1;
  if (!steps.packed()) return double(steps.steps()) * step_ns(m, one, split, steps.batch());
  const int64_t samples = std::min(steps.steps(), kSampledSteps);
  double total = 0;
  for (int64_t i = 0; i < samples; ++i) {
    const int64_t t = (2 * i + 1) * steps.steps() / (2 * samples);
    total += step_ns(m, one, split, steps.size(t));
  }
  return total * double(steps.steps()) / double(samples);
}

// Calls f(split) for every way to share out the directions, rows and units among `threads` threads
// that the request and the shape allow.
template <class F>
void for_splits(const LstmProblem& p, const PlanRequest& request, int64_t panels, int threads,
                const F& f) {
  for (int directions = 1; directions <= std::min(p.directions, threads); ++directions) {
    if (threads % directions != 0 || directions != request.directions.value_or(directions)) {
      continue;
    }
    const int group = threads / directions;
    for (int rows = 1; rows <= group; ++rows) {
      const int units = group / rows;
      if (rows * units != group || rows > std::max<int64_t>(1, p.batch) || units > panels) continue;
      if (rows != request.rows.value_or(rows) || units != request.units.value_or(units)) continue;
      f(Split{directions, rows, units});
    }
  }
}

// Directions at once have all their weights in the cache that cores share, beside the rows, gates
// and gradients that pass through it: the fuller it is, the more of these should come from memory.
// With 32 MB on two cores, two layers of 17 and 25 MB took 4 % longer at once than one after the
// other, a layer of 17 MB alone as long. So much decides where the rest is alike.
double crowding(const CpuMachine& m, const LstmProblem& p, const Split& split) {
  if (p.directions == 1) return 1;
  const double weights = 4.0 * double(p.hidden_size) * double(p.input_size + p.output_size());
  const double bytes = split.directions * weights * m.vector_bytes / (m.lanes * m.pair);
  const double filled = std::min(1.0, bytes / double(m.shared_bytes));
  return 1 + kCrowding * std::max(0.0, filled - kFree) / (1 - kFree);
}

std::string describe(const PlanRequest& r) {
  auto part = [](const char* name, auto value) {
    return value ? std::string(" ") + name + "=" + std::to_string(int64_t(*value)) : std::string();
  };
  return part("directions", r.directions) + part("rows", r.rows) + part("units", r.units) +
         part("fold", r.fold) + part("chunk", r.chunk) + part("in_place", r.in_place);
}

// The fastest split as cost(split) has it, or the smallest team that is not much slower.
template <class Cost>
void choose_team(const CpuMachine& m, const LstmProblem& p, const PlanRequest& request,
                 int64_t panels, const Cost& cost, CpuPlan* plan) {
  double best = 0;
  int best_threads = 0;
  for (int threads = 1; threads <= m.threads; ++threads) {
    const double fork = threads > 1 ? m.fork_ns.at(threads) : 0;
    if (best_threads > 0 && fork > best) break;
    for_splits(p, request, panels, threads, [&](const Split& split) {
      CpuPlan candidate = *plan;
      candidate.direction_groups = split.directions;
      candidate.row_groups = split.rows;
      candidate.unit_groups = split.units;
      candidate.predicted_ns = fork + cost(split, &candidate) * crowding(m, p, split);
      const double gain =
          best_threads == 0 ? 1
                            : std::pow(kTimePerDoubling, std::log2(double(threads) / best_threads));
      if (best_threads > 0 && candidate.predicted_ns >= best * gain) return;
      best = candidate.predicted_ns;
      best_threads = threads;
      *plan = candidate;
    });
  }
  if (best_threads == 0) {
    throw std::invalid_argument(
        "the plan asked for does not fit:" + describe(request) + " with " +
        std::to_string(m.threads) + " threads, " + std::to_string(p.directions) + " directions, " +
        std::to_string(p.batch) + " rows and " + std::to_string(panels) + " panels of units");
  }
}

// Steps whose gates' input part a quarter of L2 holds: panels and rows of x pass through it too.
int64_t chunk_that_fits(const CpuMachine& m, const LstmProblem& p, const Split& split,
                        int64_t panels) {
  const int64_t rows = ceil_div(std::max<int64_t>(p.batch, 1), split.rows);
  const int64_t step_bytes = rows * ceil_div(panels, split.units) * 4 * m.vector_bytes;
  return std::clamp<int64_t>(m.l2_bytes / 4 / std::max<int64_t>(1, step_bytes), 1,
                             std::max<int64_t>(1, p.steps));
}

// The input projection of all steps by one member, a chunk of steps at a time: its products, its
// weights once a chunk, and the sums that leave the registers and come back.
double input_ns(const CpuMachine& m, const LstmProblem& p, const Split& split, int64_t panels,
                int64_t chunk) {
  const int64_t mine = ceil_div(panels, split.units), entries = ceil_div(p.input_size, m.pair);
  const double chunks = double(ceil_div(std::max<int64_t>(1, p.steps), chunk));
  const auto rows = int64_t(double(p.rows) / split.rows / chunks) + 1;  // of a chunk
  const double bytes = mine * panel_bytes(m, entries);
  const double sum = 2.0 * m.vector_bytes / m.l2_rate + kSumCost * m.multiply_ns;
  const double stream = bytes / m.rate_of_shared(split.threads());
  return chunks * (overlapped(product_ns(m, rows, mine, entries), stream) + rows * mine * 4 * sum);
}

// Whether weights are read as they lie. By the shape and the vectors alone: see plan.h.
bool few_rows(const LstmProblem& p, const CpuMachine& m) {
  if (p.proj_size > 0) return false;
  const double multiply = m.vector_bytes == 64 ? 1 : 0.5;
  const double load = m.vector_bytes / kL2BytesPerCycle;
  auto vector_cost = [&](int64_t tile) {
    return std::max(load / double(std::clamp<int64_t>(p.batch, 1, tile)), multiply);
  };
  // Packed, the input's rows of all steps share a tile; the recurrent ones, and both where weights
  // are read as they lie, only those of one step.
  const double input_share = double(p.input_size) / double(p.input_size + p.output_size());
  const double dot = kDotOverhead * vector_cost(kDotRows);
  const double packed = input_share * multiply + (1 - input_share) * vector_cost(m.tile_rows);
  return double(p.rows) * dot < kPackCost + double(p.rows) * packed;
}

// Whether the backward pass reads weights as they lie: those of one step and one register tile of
// rows, which it reads once. The sums are those of panels, to the last bit.
bool reads_in_place(const LstmProblem& p, const Steps& steps, const CpuMachine& m,
                    const PlanRequest& request) {
  if (request.in_place.value_or(false) && !m.few_rows) {
    throw std::invalid_argument("in_place=1 is for kernels that do not multiply pairs");
  }
  return m.few_rows && request.in_place.value_or(steps.steps() == 1 && p.batch <= m.tile_rows);
}

std::string describe_team(const CpuPlan& plan, const std::string& rows_meet) {
  if (plan.threads() == 1) return "one thread: there are no more, or they would gain too little";
  std::string text = std::to_string(plan.threads()) + " threads:";
  if (plan.direction_groups > 1) text += " both directions at once;";
  if (plan.row_groups > 1) {
    text += " the batch in " + std::to_string(plan.row_groups) + " parts, " + rows_meet + ";";
  }
  if (plan.unit_groups > 1) {
    text += " the hidden units in " + std::to_string(plan.unit_groups) +
            " parts, which meet at every step;";
  }
  text.pop_back();
  return text;
}

}  // namespace

CpuPlan plan_forward(const LstmProblem& p, const Steps& steps, const CpuMachine& m,
                     const PlanRequest& request) {
  const int64_t panels = ceil_div(p.hidden_size, m.lanes);
  const int64_t input = ceil_div(p.input_size, m.pair), hidden = ceil_div(p.output_size(), m.pair);
  CpuPlan plan;
  plan.algorithm = request.algorithm.value_or(few_rows(p, m) ? Algorithm::dot : Algorithm::panels);
  if (p.prepacked) plan.algorithm = Algorithm::panels;
  if (plan.algorithm == Algorithm::dot && p.proj_size > 0) {
    throw std::invalid_argument("algorithm=dot does not take a projection");
  }
  const int barriers = p.proj_size > 0 ? 2 : 1;
  const Loop loop{panels, hidden, panels, m.gate_ns, barriers};
  Loop folded = loop;
  folded.input_entries = input;
  const double packing =
      p.prepacked ? 0 : double(p.directions * panels * 4 * (input + hidden)) * m.pack_ns;

  choose_team(
      m, p, request, panels,
      [&](const Split& split, CpuPlan* candidate) {
        const double loops = double(p.directions) / split.directions;
        const double inside = loops * loop_ns(m, steps, folded, split);
        if (plan.algorithm == Algorithm::dot) {
          candidate->fold_input = true;
          return kDotOverhead * inside;
        }
        const int64_t chunk = request.chunk.value_or(chunk_that_fits(m, p, split, panels));
        const double batched =
            loops * (loop_ns(m, steps, loop, split) + input_ns(m, p, split, panels, chunk));
        const bool once = steps.steps() == 1 && split.rows == 1;
        candidate->pack_late = once && !p.prepacked;
        candidate->fold_input = once || request.fold.value_or(inside < batched);
        candidate->chunk_steps = std::clamp<int64_t>(chunk, 1, std::max<int64_t>(1, steps.steps()));
        const double cost = candidate->fold_input ? inside : batched;
        return cost + packing / split.threads() * (candidate->pack_late ? 1 : kEarly);
      },
      &plan);
  return plan;
}

CpuPlan plan_backward(const LstmProblem& p, const Steps& steps, const CpuMachine& m,
                      const PlanRequest& request) {
  const int64_t width = 4 * m.lanes, gates = 4 * p.hidden_size;
  const int64_t panels = ceil_div(p.output_size(), width);
  const Loop loop{panels, ceil_div(gates, m.pair), ceil_div(p.hidden_size, m.lanes), m.gradient_ns,
                  p.proj_size > 0 ? 2 : 1};
  // dW and dx multiply the input's and the output's columns with the gates' gradients, all rows at
  // once; the rows of both are packed before, and the weights where each is read more than once.
  const double columns = double(2 * p.input_size + p.output_size());
  const double rows = double(steps.rows());
  const double products = columns * rows * double(gates) / (m.lanes * m.pair) * m.multiply_ns;
  CpuPlan plan;
  plan.in_place = reads_in_place(p, steps, m, request);
  const double weights = plan.in_place ? 0 : double(gates) * (columns - double(p.input_size));
  const double packing =
      (weights + rows * (double(gates) + columns)) / (m.lanes * m.pair) * m.pack_ns;
  // Steps that are computed again are so as they were.
  if (p.keep_every > 0) {
    plan.algorithm =
        request.algorithm.value_or(few_rows(p, m) ? Algorithm::dot : Algorithm::panels);
  }
  choose_team(
      m, p, request, panels,
      [&](const Split& split, CpuPlan*) {
        const double loops = double(p.directions) / split.directions;
        return loops * loop_ns(m, steps, loop, split) +
               p.directions * (products + packing) / split.threads();
      },
      &plan);
  // Where sequences end early, steps of few rows make longer chunks.
  const bool by_rows = steps.packed() && !request.chunk;
  if (by_rows) plan.chunk_rows = kGradientRows;
  const int64_t chunk = by_rows
                            ? steps.steps()
                            : request.chunk.value_or(kGradientRows / std::max<int64_t>(1, p.batch));
  plan.chunk_steps = std::clamp<int64_t>(chunk, 1, std::max<int64_t>(1, steps.steps()));
  return plan;
}

std::string explain_forward(const CpuPlan& plan, const Steps& steps) {
  const std::string team = describe_team(plan, "which never meet");
  if (plan.algorithm == Algorithm::dot) {
    return "weights read as they lie, for packing them would cost more than " +
           std::to_string(steps.rows()) + " rows save; " + team;
  }
  if (plan.pack_late) return "weights packed a panel at a time, each for its only use; " + team;
  if (plan.fold_input) return "input projection inside the step; " + team;
  return "input projection batched over " + std::to_string(plan.chunk_steps) +
         " steps, as many as a quarter of the L2 cache holds; " + team;
}

std::string explain_backward(const CpuPlan& plan) {
  const std::string chunk = plan.chunk_rows > 0
                                ? "up to " + std::to_string(plan.chunk_rows) + " rows"
                                : std::to_string(plan.chunk_steps) + " steps";
  const std::string weights = plan.in_place ? "weights read as they lie, each once; " : "";
  return weights + "weight gradients batched over " + chunk + "; " +
         describe_team(plan, "which meet at every chunk");
}

}  // namespace fused_lstm::cpu
