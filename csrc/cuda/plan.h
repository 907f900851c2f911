// Decides, for one layer on one GPU, which algorithm runs each pass. Pure: computes nothing, asks
// no device, includes neither CUDA nor torch.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/device.h"
#include "cuda/params.h"
#include "problem.h"

namespace fused_lstm::cuda {

// How numbers are multiplied; tf32 is float32 where PyTorch's settings allow TF32.
enum class Arithmetic { fp64, fp32, tf32, bf16, fp16 };

enum class Algorithm {
  block,    // A: a block holds all of W_hh and walks its batch rows alone
  cluster,  // B: a thread-block cluster does; h passes through distributed shared memory
  grid,     // C: the grid does, together; h passes through L2
  steps,    // D: a GEMM and a gate kernel per step
};

const char* name(Algorithm algorithm);
const char* name(Arithmetic arithmetic);
Arithmetic arithmetic_of(DType dtype, bool allow_tf32);
int element_size(Arithmetic arithmetic);      // of gates, h and weights
int accumulator_size(Arithmetic arithmetic);  // of c and all sums
bool tensor_core(Arithmetic arithmetic);

// What to consider instead of everything, to measure it or to test it; a 0 leaves it open.
struct Request {
  std::string algorithm;  // "" for all
  int unit_tiles = 0;     // of cluster and grid
  int groups = 0;         // of cluster and grid
};
// From "", "grid" or "grid,unit_tiles=2,groups=4"; throws std::invalid_argument for anything else.
Request parse_request(const std::string& text);

// A launch of the recurrent loop; of no meaning for Algorithm::steps.
struct Loop {
  Algorithm algorithm = Algorithm::steps;
  int variant = 0;           // index into the tables of variants.h
  int reg_tiles = 0;         // k tiles of weights that a warp keeps in registers
  Slices slices = {};        // of cluster and grid
  int threads = 0;           // per block
  int registers = 0;         // per thread: what the launch bound leaves each
  int64_t shared_bytes = 0;  // per block
  int64_t blocks = 0;        // per direction
  int cluster = 1;           // blocks per cluster
};

struct Pass {
  Loop loop;
  std::string why;                    // why this one
  std::vector<std::string> rejected;  // "block: W_hh needs ...": one line for each other one
  bool asked = false;                 // whether one algorithm was asked for
  std::string unmet;                  // why what was asked for cannot run; "" where it can
  double step_us = 0;                 // estimates that the choice rests on
  double start_us = 0;
};

struct Plan {
  Arithmetic arithmetic = Arithmetic::fp32;
  Pass forward;
  Pass backward;        // of a problem with `save`
  double floor_us = 0;  // per step: what no forward pass can go below, see plan.cpp
};

Plan plan(const LstmProblem& problem, const DeviceLimits& device, bool allow_tf32,
          const Request& request = {});

// The plan, and a loop, as names and values for Python.
using Fact = std::variant<int64_t, double, std::string, std::vector<std::string>>;
using Facts = std::vector<std::pair<std::string, Fact>>;
Facts facts(const LstmProblem& problem, const Plan& plan);
Facts facts(const Loop& loop);

}  // namespace fused_lstm::cuda
