// From a problem to the plan that ran it.
#pragma once

#include "contention.h"
#include "machine.h"
#include "running.h"
#include "team.h"

namespace fused_lstm::cpu {

// Plans for the threads at hand and runs; with fewer where other processes keep a team waiting, and
// with one where the plan's team is not to be had. plan_for(machine, request) plans; run(plan) says
// whether it ran. Returns the plan that did.
template <class T, class PlanFor, class Run>
CpuPlan plan_and_run(const Kernels<T>& kernels, const PlanFor& plan_for, const Run& run) {
  const PlanRequest request = requested_plan();
  const int most = available_threads();
  // What is known of all threads serves for fewer: nothing is measured while others use the cores.
  CpuMachine here = machine(kernels, most);
  here.threads = request.asks_for_a_team() ? most : uncontended_threads(most);
  for (;; here.threads = 1) {
    const CpuPlan plan = plan_for(here, request);
    if (run(plan)) return plan;
  }
}

}  // namespace fused_lstm::cpu
