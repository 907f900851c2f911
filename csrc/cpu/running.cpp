#include "running.h"

#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "fork.h"

namespace fused_lstm::cpu {
namespace {

std::mutex request_mutex;
const int at_fork = free_over_fork<request_mutex>();

PlanRequest& request_in_force() {
  static PlanRequest request = [] {
    const char* text = std::getenv("FUSED_LSTM_CPU_PLAN");
    try {
      return PlanRequest::parse(text == nullptr ? "" : text);
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string("FUSED_LSTM_CPU_PLAN: ") + error.what());
    }
  }();
  return request;
}

}  // namespace

PlanRequest requested_plan() {
  const std::lock_guard<std::mutex> lock(request_mutex);
  return request_in_force();
}

void request_plan(const PlanRequest& request) {
  const std::lock_guard<std::mutex> lock(request_mutex);
  request_in_force() = request;
}

LastPlans& last_plans() {
  static thread_local LastPlans plans;
  return plans;
}

}  // namespace fused_lstm::cpu
