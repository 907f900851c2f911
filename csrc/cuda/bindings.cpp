#include "cuda/bindings.h"

#include <pybind11/stl.h>

#include <map>

#include "cuda/costs.h"
#include "cuda/device.h"
#include "cuda/plan.h"

#ifdef FUSED_LSTM_WITH_CUDA
#include <ATen/Context.h>

#include "cuda/layer/ran.h"
#include "cuda/layer/runtime.h"
#endif

namespace py = pybind11;

namespace fused_lstm::cuda {

namespace {

py::dict dict_of(const Facts& facts) {
  py::dict dict;
  for (const auto& [name, value] : facts) dict[name.c_str()] = value;
  return dict;
}

// {"forward": {...}, "backward": {...}} of the last call in this process.
py::dict last_run_facts() {
  py::dict dict;
#ifdef FUSED_LSTM_WITH_CUDA
  const Ran ran = last_run();
  dict["arithmetic"] = name(ran.arithmetic);
  dict["forward"] = dict_of(facts(ran.forward));
  dict["backward"] = dict_of(facts(ran.backward));
#endif
  return dict;
}

std::map<std::string, double> get_latencies() {
  std::map<std::string, double> values;
  for (const auto& [name, member] : latency_names()) values[name] = latencies().*member;
  return values;
}

// All of them, as get_latencies() gives them.
void replace_latencies(const std::map<std::string, double>& values) {
  Latencies latencies;
  for (const auto& [name, member] : latency_names()) latencies.*member = values.at(name);
  set_latencies(latencies);
}

// Address of host memory that the device can write, 0 for none.
void set_trace_address([[maybe_unused]] int64_t address) {
#if defined(FUSED_LSTM_WITH_CUDA) && defined(FUSED_LSTM_CUDA_TRACE)
  set_trace(reinterpret_cast<int64_t*>(address));
#else
  throw py::value_error("the extension was built without FUSED_LSTM_CUDA_TRACE=1");
#endif
}

}  // namespace

py::dict plan_facts(const LstmProblem& problem, const std::string& device, bool allow_tf32,
                    const std::string& request) {
#ifdef FUSED_LSTM_WITH_CUDA
  if (device == "cuda") {
    const std::string asked = request.empty() ? request_text() : request;
    return dict_of(facts(problem, plan(problem, current_device_limits(),
                                       at::globalContext().allowTF32CuDNN(at::Float32Op::RNN),
                                       parse_request(asked))));
  }
#endif
  return dict_of(
      facts(problem, plan(problem, known_device(device), allow_tf32, parse_request(request))));
}

void bind(py::module_& module) {
  module.def("cuda_last_run", &last_run_facts,
             "What the last call on a GPU really ran: the algorithm of each pass and its launch.");
  module.def("cuda_latencies", &get_latencies, "What the CUDA planner's estimates rest on.");
  module.def("cuda_set_latencies", &replace_latencies,
             "Replaces them in this process: for a fit to measured times.", py::arg("values"));
  module.def("cuda_set_trace", &set_trace_address, "See csrc/cuda/trace.cuh.", py::arg("address"));
}

}  // namespace fused_lstm::cuda
