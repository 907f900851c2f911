// What a step costs, in microseconds: the arithmetic behind the planner's choices, and the one
// table that a measurement is to replace.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/plan.h"
#include "problem.h"

namespace fused_lstm::cuda {

// Rates of one architecture. From data sheets and published measurements, not measured here.
struct Rates {
  int compute_capability;
  double clock_ghz;
  double fp32_fma;         // per SM and cycle
  double fp64_fma;         // per SM and cycle
  double mma_fma;          // 16-bit multiply-adds by mma.sync, per SM and cycle; TF32 has half
  double peak_fma;         // the same by the fastest instructions there are
  double memory_gb_per_s;  // device memory
  double l2_gb_per_s;
};

// Latencies and widths, the same for all: published H100 figures and counts, not measured here.
struct Latencies {
  double block_barrier_us = 0.05;  // __syncthreads
  double cell_us = 0.25;           // load gates_x, activate, store: dependent instructions
  double cluster_hop_us = 0.20;    // a store to another SM, and a load of 180 cycles that finds it
  double l2_hop_us = 0.65;         // the same through L2: an atomic hop
  double fence_us = 0.25;          // MEMBAR with stores that are a hop old, and L1 emptied
  double kernel_us = 2.5;          // one more launch in a stream, on the device
  double host_kernel_us = 4.0;     // the same for the thread that issues it
  double loop_launch_us = 10;      // cooperative launch, exchange emptied, weights fetched
  double cell_instructions = 150;  // of one cell: three sigmoids, two tanh
  double fast_cell_instructions = 60;
  double shared_bytes_per_cycle = 128;
  double l2_bytes_per_cycle = 64;       // into one SM
  double cluster_bytes_per_cycle = 24;  // out of one SM, to other SMs of its cluster
};

const Rates& rates_of(const DeviceLimits& device);
const Latencies& latencies();
// For a fit to measured times, and for tests: from now on, in the whole process.
void set_latencies(const Latencies& values);
// Every one with its name.
const std::vector<std::pair<const char*, double Latencies::*>>& latency_names();

// One step of a persistent loop; operands: 1 forward, 4 backward.
double loop_step_us(const LstmProblem& problem, Arithmetic arithmetic, const DeviceLimits& device,
                    const Loop& loop, int operands);
// Before the first step: launch, and W_hh into shared memory.
double loop_start_us(const LstmProblem& problem, Arithmetic arithmetic, const DeviceLimits& device,
                     const Loop& loop);
// One step of plan D.
double gemm_step_us(const LstmProblem& problem, Arithmetic arithmetic, const DeviceLimits& device);

// What no forward step of this shape can go below on this device, whatever the algorithm: the
// largest of traffic of what a step must read and write, of W_hh where it fits nowhere on the chip,
// and of arithmetic and the exchange of h, which follow each other; a block's barrier is enough
// where W_hh fits into one SM.
double floor_step_us(const LstmProblem& problem, Arithmetic arithmetic, const DeviceLimits& device);

}  // namespace fused_lstm::cuda
