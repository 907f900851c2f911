#include "cuda/costs.h"

#include <algorithm>

#include "cuda/layout.h"

namespace fused_lstm::cuda {

namespace {

constexpr double kOperandTileBytes = kRowTile * kTileBytes;

constexpr Rates kRates[] = {
    // cc, GHz, fp32, fp64, mma, peak, memory GB/s, L2 GB/s
    {80, 1.41, 64, 32, 1024, 1024, 2000, 4000},     // A100 80 GB
    {86, 1.86, 128, 2, 256, 256, 1000, 2500},       // RTX 3090 Ti
    {89, 2.52, 128, 2, 256, 256, 1000, 5000},       // RTX 4090
    {90, 1.76, 128, 64, 1280, 2048, 4800, 5500},    // H200
    {100, 1.85, 128, 64, 1280, 4096, 8000, 10000},  // B200
    {120, 2.40, 128, 2, 512, 512, 1800, 8000},      // RTX PRO 6000
};

double us_of_cycles(double cycles, const Rates& rates) { return cycles / (1000 * rates.clock_ghz); }
// 1 GB/s moves 1000 bytes in a microsecond.
double us_of_bytes(double bytes, double gb_per_s) { return bytes / (1000 * gb_per_s); }

double fma_per_cycle(Arithmetic arithmetic, const Rates& rates, double tensor_core) {
  switch (arithmetic) {
    case Arithmetic::fp64:
      return rates.fp64_fma;
    case Arithmetic::fp32:
      return rates.fp32_fma;
    case Arithmetic::tf32:
      return tensor_core / 2;
    default:
      return tensor_core;
  }
}

// What a step reads and writes in device memory: the gates' row block in and, saving, out; y; c.
double step_bytes(const LstmProblem& p, Arithmetic arithmetic, double rows) {
  const double element = element_size(arithmetic);
  const double acc = arithmetic == Arithmetic::fp64 ? 8 : 4;
  const double hidden = static_cast<double>(p.hidden_size);
  const double saved = p.save ? 4 * element + acc : 0;
  return p.directions * rows * hidden * (4 * element + element + saved);
}

double rows_per_step(const LstmProblem& p) {
  return p.steps > 0 ? static_cast<double>(p.rows) / static_cast<double>(p.steps) : 0;
}

double weight_bytes(const LstmProblem& p, Arithmetic arithmetic) {
  return 4.0 * static_cast<double>(p.hidden_size) * static_cast<double>(p.output_size()) *
         element_size(arithmetic);
}

}  // namespace

const Rates& rates_of(const DeviceLimits& device) {
  // The newest architecture that is not newer than the device.
  const Rates* best = &kRates[0];
  for (const Rates& rates : kRates) {
    if (rates.compute_capability <= device.compute_capability) best = &rates;
  }
  return *best;
}

namespace {
Latencies current_latencies;
}

const Latencies& latencies() { return current_latencies; }
void set_latencies(const Latencies& values) { current_latencies = values; }

const std::vector<std::pair<const char*, double Latencies::*>>& latency_names() {
  using L = Latencies;
  static const std::vector<std::pair<const char*, double L::*>> names = {
      {"block_barrier_us", &L::block_barrier_us},
      {"cell_us", &L::cell_us},
      {"cluster_hop_us", &L::cluster_hop_us},
      {"l2_hop_us", &L::l2_hop_us},
      {"fence_us", &L::fence_us},
      {"kernel_us", &L::kernel_us},
      {"host_kernel_us", &L::host_kernel_us},
      {"loop_launch_us", &L::loop_launch_us},
      {"cell_instructions", &L::cell_instructions},
      {"fast_cell_instructions", &L::fast_cell_instructions},
      {"shared_bytes_per_cycle", &L::shared_bytes_per_cycle},
      {"l2_bytes_per_cycle", &L::l2_bytes_per_cycle},
      {"cluster_bytes_per_cycle", &L::cluster_bytes_per_cycle},
  };
  return names;
}

namespace {

// What one row tile of one step asks of the SM that has it.
struct RowTileWork {
  double fma, shared_bytes, cells;
  double l2_bytes, cluster_bytes;  // in through L2, out to the cluster

  RowTileWork(const LstmProblem& problem, Arithmetic arithmetic, const Loop& loop, int operands) {
    const int element = element_size(arithmetic);
    const bool block = loop.algorithm == Algorithm::block;
    const bool cluster = loop.algorithm == Algorithm::cluster;
    const double k_tiles = static_cast<double>(k_tile_count(problem.hidden_size, element));
    const double unit_tiles =
        block ? static_cast<double>(unit_tile_count(problem.hidden_size)) : loop.slices.unit_tiles;
    const double k_warps = block ? 1 : loop.slices.k_warps;
    const double operand = k_tiles * operands * kOperandTileBytes;
    cells = unit_tiles * kCells;
    fma = cells * kGates * k_tiles * kTileBytes / element;
    // In plan A every warp reads the operand, in B every part of the units; in B and C the warps
    // write down the sums of their k tiles and read those of all.
    const double operand_reads = block ? unit_tiles : cluster ? loop.slices.unit_parts : 0;
    const double sums = block ? 0 : k_warps * cells * (operands == 1 ? kGates : 1);
    shared_bytes = unit_tiles * std::max(0.0, k_tiles - k_warps * loop.reg_tiles) * kBlockBytes +
                   operand * operand_reads + 2 * sums * accumulator_size(arithmetic);
    l2_bytes = loop.algorithm == Algorithm::grid ? operand : 0;
    cluster_bytes = cluster ? cells * operands * element * loop.cluster : 0;
  }
};

double hop_us(Algorithm algorithm) {
  const Latencies& latency = latencies();
  if (algorithm == Algorithm::block) return 0;
  return algorithm == Algorithm::cluster ? latency.cluster_hop_us : latency.l2_hop_us;
}

// Blocks, or whole clusters, that are not resident with the first ones wait until those have ended.
double waves(const LstmProblem& problem, const DeviceLimits& device, const Loop& loop) {
  const int64_t blocks = loop.blocks * problem.directions;
  if (loop.algorithm == Algorithm::cluster) {
    return static_cast<double>(ceil_div(
        blocks / loop.cluster, std::max<int64_t>(1, resident_clusters(device, loop.cluster))));
  }
  const int64_t resident =
      device.multiprocessors * static_cast<int64_t>(resident_blocks(
                                   device, loop.threads, loop.registers, loop.shared_bytes));
  return static_cast<double>(ceil_div(blocks, std::max<int64_t>(1, resident)));
}

}  // namespace

double loop_step_us(const LstmProblem& problem, Arithmetic arithmetic, const DeviceLimits& device,
                    const Loop& loop, int operands) {
  const Rates& rates = rates_of(device);
  const Latencies& latency = latencies();
  const RowTileWork work(problem, arithmetic, loop, operands);
  const double at_once = waves(problem, device, loop);
  const double blocks = static_cast<double>(loop.blocks * problem.directions) / at_once;
  // Blocks that share an SM share what it can do.
  const double per_sm = std::max(1.0, blocks / device.multiprocessors);
  const double product =
      us_of_cycles(std::max(work.shared_bytes / latency.shared_bytes_per_cycle,
                            work.fma / fma_per_cycle(arithmetic, rates, rates.mma_fma)),
                   rates);
  // L2 serves all SMs together, and each at its own width.
  const double gather = std::max(us_of_cycles(work.l2_bytes / latency.l2_bytes_per_cycle, rates),
                                 us_of_bytes(blocks / per_sm * work.l2_bytes, rates.l2_gb_per_s)) +
                        us_of_cycles(work.cluster_bytes / latency.cluster_bytes_per_cycle, rates);
  const double instructions =
      tensor_core(arithmetic) ? latency.fast_cell_instructions : latency.cell_instructions;
  const double cells = us_of_cycles(work.cells * instructions / rates.fp32_fma, rates);
  const bool block = loop.algorithm == Algorithm::block;
  const double fence = loop.algorithm == Algorithm::grid ? latency.fence_us / kGridFenceEvery : 0;
  // The row tiles of a block follow each other; the hop of one passes while the others compute.
  const double turn =
      (product + gather + cells) * per_sm + latency.block_barrier_us + latency.cell_us + fence;
  const double row_tiles = block ? 1
                                 : static_cast<double>(ceil_div(row_tile_count(problem.batch),
                                                                std::max(loop.slices.groups, 1)));
  const double traffic =
      us_of_bytes(step_bytes(problem, arithmetic, rows_per_step(problem)), rates.memory_gb_per_s);
  return std::max(at_once * std::max(row_tiles * turn, turn + hop_us(loop.algorithm)), traffic);
}

double loop_start_us(const LstmProblem& problem, Arithmetic arithmetic, const DeviceLimits& device,
                     const Loop& loop) {
  const Rates& rates = rates_of(device);
  const double copies = loop.algorithm == Algorithm::block
                            ? static_cast<double>(loop.blocks)
                            : static_cast<double>(loop.slices.groups);
  return latencies().loop_launch_us +
         us_of_bytes(copies * problem.directions * weight_bytes(problem, arithmetic),
                     rates.l2_gb_per_s);
}

double gemm_step_us(const LstmProblem& problem, Arithmetic arithmetic, const DeviceLimits& device) {
  const Rates& rates = rates_of(device);
  const double weights = problem.directions * weight_bytes(problem, arithmetic);
  const double rows = rows_per_step(problem);
  // A GEMM of few rows does as much work as one of a whole tile of 64.
  const double padded = static_cast<double>(ceil_div(static_cast<int64_t>(rows), 64) * 64);
  const double fma = padded * weights / element_size(arithmetic);
  const double sms = device.multiprocessors;
  const double compute =
      us_of_cycles(fma / (sms * fma_per_cycle(arithmetic, rates, rates.peak_fma)), rates);
  const bool in_l2 = weights <= static_cast<double>(device.l2_bytes) / 2;
  const double read = us_of_bytes(weights, in_l2 ? rates.l2_gb_per_s : rates.memory_gb_per_s);
  // Through memory once, and what the GEMM hands to the gate kernel through L2.
  const double bytes = step_bytes(problem, arithmetic, rows);
  // With a projection one more, and packed a copy of what it gives.
  const double products = problem.proj_size == 0 ? 1 : problem.packed ? 3 : 2;
  const double kernels = 1 + problem.directions * products;
  const double on_device = kernels * latencies().kernel_us + std::max(compute, read) +
                           us_of_bytes(bytes, rates.memory_gb_per_s) +
                           us_of_bytes(bytes, rates.l2_gb_per_s);
  // Without a captured graph, whichever is slower.
  return std::max(on_device, kernels * latencies().host_kernel_us);
}

double floor_step_us(const LstmProblem& problem, Arithmetic arithmetic,
                     const DeviceLimits& device) {
  const Rates& rates = rates_of(device);
  const double weights = problem.directions * weight_bytes(problem, arithmetic);
  const double rows = rows_per_step(problem);
  const double sms = device.multiprocessors;
  const double fma = rows * weights / element_size(arithmetic);
  const double compute =
      us_of_cycles(fma / (sms * fma_per_cycle(arithmetic, rates, rates.peak_fma)), rates);
  const double traffic = us_of_bytes(step_bytes(problem, arithmetic, rows), rates.memory_gb_per_s);
  const double registers = 4.0 * static_cast<double>(device.registers_per_sm);
  const double on_sm = static_cast<double>(device.shared_per_block) + registers / 2;
  double read = 0;
  if (weights > sms * on_sm) {
    const bool in_l2 = weights <= static_cast<double>(device.l2_bytes);
    read = us_of_bytes(weights, in_l2 ? rates.l2_gb_per_s : rates.memory_gb_per_s);
  }
  const bool alone = weights / problem.directions <= on_sm;
  const double exchange = alone ? latencies().block_barrier_us : latencies().l2_hop_us;
  return std::max({compute + exchange, traffic, read});
}

}  // namespace fused_lstm::cuda
