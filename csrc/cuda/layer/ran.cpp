#include "cuda/layer/ran.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdlib>
#include <mutex>

namespace fused_lstm::cuda {

namespace {

std::mutex mutex;
Ran ran;
std::atomic<int64_t*> trace_memory{nullptr};

void record(const Loop& loop, Arithmetic arithmetic, bool backward) {
  const std::lock_guard<std::mutex> lock(mutex);
  ran.arithmetic = arithmetic;
  (backward ? ran.backward : ran.forward) = loop;
}

bool strict() {
  const char* text = std::getenv("FUSED_LSTM_STRICT");
  return text && *text != '\0' && std::string(text) != "0";
}

void complain(const Pass& pass, const std::string& what) {
  TORCH_CHECK(!(pass.asked && strict()), "fused_lstm: ", what,
              " (FUSED_LSTM_STRICT=1 makes this an error)");
  TORCH_WARN_ONCE("fused_lstm: ", what, "; running step by step");
}

}  // namespace

std::string request_text() {
  const char* text = std::getenv("FUSED_LSTM_CUDA_ALGORITHM");
  return text ? text : "";
}

Ran last_run() {
  const std::lock_guard<std::mutex> lock(mutex);
  return ran;
}

void run_pass(const Pass& pass, Arithmetic arithmetic, bool backward,
              const std::function<std::string()>& launch, const std::function<void()>& steps) {
  if (!pass.unmet.empty()) {
    complain(pass, "FUSED_LSTM_CUDA_ALGORITHM=" + request_text() + " cannot run: " + pass.unmet);
  }
  Loop loop = pass.loop;
  if (loop.algorithm != Algorithm::steps) {
    const std::string refused = launch();
    if (!refused.empty()) {
      complain(pass, std::string("the device refuses the algorithm '") + name(loop.algorithm) +
                         "': " + refused);
      loop = Loop();
    }
  }
  if (loop.algorithm == Algorithm::steps) steps();
  record(loop, arithmetic, backward);
}

void set_trace(int64_t* memory) { trace_memory = memory; }
int64_t* trace() { return trace_memory; }

}  // namespace fused_lstm::cuda
