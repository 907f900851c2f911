// What Python sees of csrc/cuda besides the ops.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "problem.h"

namespace fused_lstm::cuda {

void bind(pybind11::module_& module);

// The plan of one layer for `device`, such as "cuda:sm_90"; "cuda" is the current device, under
// PyTorch's own setting for TF32. `request` is what parse_request() takes.
pybind11::dict plan_facts(const LstmProblem& problem, const std::string& device, bool allow_tf32,
                          const std::string& request);

}  // namespace fused_lstm::cuda
