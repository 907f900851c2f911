// What was asked for and what ran, to be seen from Python.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cuda/plan.h"

namespace fused_lstm::cuda {

// FUSED_LSTM_CUDA_ALGORITHM, as parse_request() takes it: what to run, to measure it or to test it.
std::string request_text();

// Of the last call in this process: the loop that it ran, Algorithm::steps for plan D.
struct Ran {
  Arithmetic arithmetic = Arithmetic::fp32;
  Loop forward;
  Loop backward;
};
Ran last_run();

// Runs a pass: by `launch`, which says why the device refuses it or "", where the plan is a loop;
// else by `steps`. Where what was asked for cannot run, that is said once, or with
// FUSED_LSTM_STRICT=1 an error.
void run_pass(const Pass& pass, Arithmetic arithmetic, bool backward,
              const std::function<std::string()>& launch, const std::function<void()>& steps);

// Memory for trace.cuh, or nullptr; of no meaning but in a build with FUSED_LSTM_CUDA_TRACE.
void set_trace(int64_t* memory);
int64_t* trace();

}  // namespace fused_lstm::cuda
