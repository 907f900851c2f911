#include "cuda/plan.h"

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "cuda/costs.h"
#include "cuda/layout.h"
#include "cuda/variants.h"

namespace fused_lstm::cuda {

namespace {

// One pass of one problem on one device: what every algorithm below is asked about.
struct Question {
  const LstmProblem& problem;
  const DeviceLimits& device;
  Arithmetic arithmetic;
  const Request& request;
  int operands;  // of the recurrent product: 1 forward (h), 4 backward (gradients of the gates)

  int64_t unit_tiles() const { return unit_tile_count(problem.hidden_size); }
  int64_t sliced_tiles() const {
    return sliced_unit_tiles(problem.hidden_size, element_size(arithmetic));
  }
  int64_t row_tiles() const { return row_tile_count(problem.batch); }
};

// A loop that fits, or the reason why none does.
struct Answer {
  std::optional<Loop> loop;
  std::string reason;
  double total_us = 0;
  bool considered = true;  // false where no variant is of the kind that was asked for

  // Keeps the cheaper of this and another loop.
  void offer(const Question& q, const Loop& candidate) {
    const double steps = static_cast<double>(q.problem.steps);
    const double us =
        loop_start_us(q.problem, q.arithmetic, q.device, candidate) +
        steps * loop_step_us(q.problem, q.arithmetic, q.device, candidate, q.operands);
    if (loop && us >= total_us) return;
    loop = candidate;
    total_us = us;
  }
};

std::string kib(int64_t bytes) { return std::to_string(ceil_div(bytes, 1024)) + " KiB"; }

std::string too_much_shared(int64_t bytes, const DeviceLimits& device) {
  return "a block's share of W_hh and h takes " + kib(bytes) + " of shared memory, " + device.name +
         " has " + kib(device.shared_per_block);
}

// What __launch_bounds__(max_threads) leaves a thread, in the units of 8 that hardware gives.
int registers_for(const DeviceLimits& device, int max_threads) {
  return static_cast<int>(std::min<int64_t>(255, device.registers_per_sm / max_threads / 8 * 8));
}

// ---- A ----

template <size_t n>
Answer ask_block(const Question& q, const BlockVariant (&variants)[n]) {
  Answer answer;
  const int64_t threads = 32 * q.unit_tiles();
  int64_t least = 0;
  answer.considered = q.request.unit_tiles == 0 && q.request.groups == 0;
  for (size_t i = 0; i < n && answer.considered; ++i) {
    if (threads > variants[i].max_threads) continue;
    const BlockLayout layout(q.problem.hidden_size, element_size(q.arithmetic), q.operands,
                             variants[i].reg_tiles);
    least = least == 0 ? layout.bytes : std::min(least, layout.bytes);
    if (layout.bytes > q.device.shared_per_block) continue;
    Loop loop;
    loop.algorithm = Algorithm::block;
    loop.variant = static_cast<int>(i);
    loop.reg_tiles = variants[i].reg_tiles;
    loop.threads = static_cast<int>(threads);
    loop.registers = registers_for(q.device, variants[i].max_threads);
    loop.shared_bytes = layout.bytes;
    loop.blocks = q.row_tiles();
    answer.offer(q, loop);
  }
  if (answer.loop) return answer;
  answer.reason = least > 0 ? too_much_shared(least, q.device)
                            : "a warp for each 8 hidden units makes " + std::to_string(threads) +
                                  " threads, the kernel takes " +
                                  std::to_string(variants[n - 1].max_threads);
  return answer;
}

// ---- B and C ----

Loop sliced_loop(const Question& q, Algorithm algorithm, int variant, const SlicedVariant& shape,
                 int64_t groups) {
  Loop loop;
  loop.algorithm = algorithm;
  loop.variant = variant;
  loop.reg_tiles = shape.reg_tiles;
  loop.threads = shape.threads;
  loop.registers = registers_for(q.device, shape.threads);
  loop.slices.unit_tiles = shape.unit_tiles;
  loop.slices.unit_parts = shape.unit_parts;
  loop.slices.k_warps = shape.threads / 32 / shape.unit_parts;
  loop.slices.slices = static_cast<int32_t>(ceil_div(q.sliced_tiles(), shape.unit_tiles));
  loop.slices.groups = static_cast<int32_t>(groups);
  loop.blocks = loop.slices.slices * groups;
  if (algorithm == Algorithm::cluster) loop.cluster = loop.slices.slices;
  const SlicedLayout layout(loop.slices, q.problem.hidden_size, q.problem.batch,
                            element_size(q.arithmetic), accumulator_size(q.arithmetic), q.operands,
                            shape.reg_tiles, algorithm == Algorithm::cluster);
  loop.shared_bytes = layout.bytes;
  return loop;
}

bool wanted(const Question& q, const SlicedVariant& shape) {
  return q.request.unit_tiles == 0 || q.request.unit_tiles == shape.unit_tiles;
}
bool wanted(const Question& q, int64_t groups) {
  return q.request.groups == 0 || q.request.groups == groups;
}

template <size_t n>
Answer ask_cluster(const Question& q, const SlicedVariant (&variants)[n]) {
  Answer answer;
  if (q.device.cluster_blocks <= 1) {
    answer.reason = q.device.name + " has no thread-block clusters";
    return answer;
  }
  answer.considered = false;
  int64_t least_slices = 0, least_shared = 0;
  for (size_t i = 0; i < n; ++i) {
    if (!wanted(q, variants[i])) continue;
    const int64_t slices = ceil_div(q.sliced_tiles(), variants[i].unit_tiles);
    least_slices = least_slices == 0 ? slices : std::min(least_slices, slices);
    if (slices > q.device.cluster_blocks) {
      answer.considered = true;
      continue;
    }
    const int64_t room = resident_clusters(q.device, slices) / q.problem.directions;
    // As many groups as run at once, or else one row tile for each and so the least memory.
    int64_t candidates[] = {std::clamp<int64_t>(room, 1, q.row_tiles()), q.row_tiles()};
    if (q.request.groups > 0) candidates[0] = std::min<int64_t>(q.request.groups, q.row_tiles());
    for (const int64_t groups : candidates) {
      if (!wanted(q, groups)) continue;
      answer.considered = true;
      const Loop loop =
          sliced_loop(q, Algorithm::cluster, static_cast<int>(i), variants[i], groups);
      least_shared =
          least_shared == 0 ? loop.shared_bytes : std::min(least_shared, loop.shared_bytes);
      if (loop.shared_bytes <= q.device.shared_per_block) answer.offer(q, loop);
    }
  }
  if (answer.loop) return answer;
  answer.reason = least_shared > 0
                      ? too_much_shared(least_shared, q.device)
                      : "its hidden units need " + std::to_string(least_slices) +
                            " blocks, a cluster has " + std::to_string(q.device.cluster_blocks);
  return answer;
}

template <size_t n>
Answer ask_grid(const Question& q, const SlicedVariant (&variants)[n]) {
  Answer answer;
  if (!q.device.cooperative) {
    answer.reason = q.device.name + " has no cooperative launch";
    return answer;
  }
  answer.considered = false;
  int64_t least_shared = 0, least_blocks = 0;
  for (size_t i = 0; i < n; ++i) {
    if (!wanted(q, variants[i])) continue;
    // Twice the groups, half the row tiles of each block: worth it while all blocks are resident.
    for (int64_t groups = 1; groups <= q.row_tiles(); groups *= 2) {
      if (!wanted(q, groups)) continue;
      answer.considered = true;
      const Loop loop = sliced_loop(q, Algorithm::grid, static_cast<int>(i), variants[i], groups);
      least_shared =
          least_shared == 0 ? loop.shared_bytes : std::min(least_shared, loop.shared_bytes);
      if (loop.shared_bytes > q.device.shared_per_block) continue;
      const int64_t resident =
          static_cast<int64_t>(q.device.multiprocessors) *
          resident_blocks(q.device, loop.threads, loop.registers, loop.shared_bytes);
      const int64_t wanted = loop.blocks * q.problem.directions;
      least_blocks = least_blocks == 0 ? wanted : std::min(least_blocks, wanted);
      if (wanted <= resident) answer.offer(q, loop);
    }
  }
  if (answer.loop) return answer;
  answer.reason = least_blocks > 0 ? "it needs " + std::to_string(least_blocks) +
                                         " blocks at once, more than are resident on " +
                                         std::to_string(q.device.multiprocessors) + " SMs"
                                   : too_much_shared(least_shared, q.device);
  return answer;
}

// ---- the choice ----

// Asks with the variants that are compiled for this arithmetic and pass.
template <class Forward, class Backward, class Fp32, class Fp64, class Ask>
Answer by_arithmetic(const Question& q, const Forward& forward, const Backward& backward,
                     const Fp32& fp32, const Fp64& fp64, Ask ask) {
  if (tensor_core(q.arithmetic)) return q.operands == 1 ? ask(forward) : ask(backward);
  return q.arithmetic == Arithmetic::fp64 ? ask(fp64) : ask(fp32);
}

Answer ask_variants(const Question& q, Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::block:
      return by_arithmetic(q, kBlockTensorCore, kBlockTensorCore, kBlockFp32, kBlockFp64,
                           [&](auto& variants) { return ask_block(q, variants); });
    case Algorithm::cluster:
      return by_arithmetic(q, kClusterForwardTensorCore, kClusterBackwardTensorCore, kClusterFp32,
                           kClusterFp64, [&](auto& variants) { return ask_cluster(q, variants); });
    default:
      return by_arithmetic(q, kGridTensorCore, kGridTensorCore, kGridFp32, kGridFp64,
                           [&](auto& variants) { return ask_grid(q, variants); });
  }
}

Answer ask(const Question& q, Algorithm algorithm) {
  const std::string& only = q.request.algorithm;
  if (!only.empty() && only != name(algorithm)) return {{}, only + " was asked for", 0};
  if (q.problem.proj_size > 0) {
    return {{}, "the projection is a second product inside every step", 0};
  }
  Answer answer = ask_variants(q, algorithm);
  if (!answer.considered) {
    answer.reason = "no variant has the unit tiles or groups that were asked for";
  }
  return answer;
}

std::string format_us(double us) {
  std::ostringstream text;
  text.precision(3);
  text << us << " us";
  return text.str();
}

Pass choose(const Question& q) {
  Pass pass;
  const bool asked = pass.asked = !q.request.algorithm.empty();
  const double steps = static_cast<double>(q.problem.steps);
  pass.step_us = gemm_step_us(q.problem, q.arithmetic, q.device);
  double best = steps * pass.step_us;
  const std::string by_steps = "steps: estimated " + format_us(best);
  if (q.problem.rows == 0) {
    pass.why = "there is nothing to compute";
    return pass;
  }

  std::vector<std::pair<Algorithm, Answer>> answers;
  for (const Algorithm algorithm : {Algorithm::block, Algorithm::cluster, Algorithm::grid}) {
    answers.emplace_back(algorithm, ask(q, algorithm));
    const Answer& answer = answers.back().second;
    if (asked && q.request.algorithm == name(algorithm)) pass.unmet = answer.reason;
    if (!answer.loop || (answer.total_us >= best && !asked)) continue;
    best = answer.total_us;
    pass.loop = *answer.loop;
    pass.step_us = loop_step_us(q.problem, q.arithmetic, q.device, pass.loop, q.operands);
    pass.start_us = loop_start_us(q.problem, q.arithmetic, q.device, pass.loop);
  }
  pass.why = "estimated " + format_us(best) +
             (!pass.unmet.empty() ? ", where " + q.request.algorithm + " cannot run"
              : asked             ? ", as asked for"
                                  : ", the least of what fits");
  for (const auto& [algorithm, answer] : answers) {
    if (algorithm == pass.loop.algorithm) continue;
    pass.rejected.push_back(
        std::string(name(algorithm)) + ": " +
        (answer.loop ? "estimated " + format_us(answer.total_us) : answer.reason));
  }
  if (pass.loop.algorithm != Algorithm::steps) pass.rejected.push_back(by_steps);
  return pass;
}

// A whole number above 0.
int parse_count(const std::string& text) {
  const bool digits =
      !text.empty() && text.size() < 9 && text.find_first_not_of("0123456789") == std::string::npos;
  return digits ? std::stoi(text) : 0;
}

}  // namespace

Request parse_request(const std::string& text) {
  const auto refuse = [&] {
    throw std::invalid_argument("'" + text +
                                "' is no request for a CUDA algorithm: expected block, cluster, "
                                "grid or steps, and of cluster and grid perhaps "
                                "',unit_tiles=2' and ',groups=4'");
  };
  Request request;
  std::istringstream parts(text);
  std::getline(parts, request.algorithm, ',');
  const std::string& algorithm = request.algorithm;
  const bool sliced = algorithm == "cluster" || algorithm == "grid";
  if (!sliced && !algorithm.empty() && algorithm != "block" && algorithm != "steps") refuse();
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    const std::string key = part.substr(0, equals);
    const int count = equals == std::string::npos ? 0 : parse_count(part.substr(equals + 1));
    if (!sliced || count == 0 || (key != "unit_tiles" && key != "groups")) refuse();
    (key == "groups" ? request.groups : request.unit_tiles) = count;
  }
  return request;
}

Plan plan(const LstmProblem& problem, const DeviceLimits& device, bool allow_tf32,
          const Request& request) {
  Plan result;
  // TF32 came with compute capability 8.0.
  result.arithmetic = arithmetic_of(problem.dtype, allow_tf32 && device.compute_capability >= 80);
  result.forward = choose({problem, device, result.arithmetic, request, 1});
  if (problem.save) result.backward = choose({problem, device, result.arithmetic, request, kGates});
  result.floor_us = floor_step_us(problem, result.arithmetic, device);
  return result;
}

}  // namespace fused_lstm::cuda
