// The CPU's part of the extension module.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "../problem.h"

namespace fused_lstm::cpu {

void bind(pybind11::module_& module);

// The plan of one layer, its reasons and its predicted time. `threads` 0: as many as a call made
// here and now may have; other teams that keep the cores busy can leave it fewer. `machine` names
// facts that are to be taken instead of those measured.
pybind11::dict plan_facts(const LstmProblem& problem, const Steps& steps, int threads,
                          const pybind11::dict& machine, const std::string& request);

}  // namespace fused_lstm::cpu
