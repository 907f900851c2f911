// What plans are asked for from outside, and which plans ran.
#pragma once

#include <optional>

#include "plan.h"

namespace fused_lstm::cpu {

// The request in force for all threads: FUSED_LSTM_CPU_PLAN, until request_plan() sets another.
PlanRequest requested_plan();
void request_plan(const PlanRequest& request);

// The plans of the last calls on this thread, if there was one.
struct LastPlans {
  std::optional<CpuPlan> forward, backward;
};
LastPlans& last_plans();

}  // namespace fused_lstm::cpu
