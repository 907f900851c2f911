// pybind11: what is not an op. Build facts, the instruction set, and plans as dictionaries.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/extension.h>

#include <thread>

#include "cpu/layer.h"
#include "cpu/team.h"
#include "cuda/device.h"
#include "cuda/plan.h"
#include "plan.h"

#ifdef FUSED_LSTM_WITH_CUDA
#include <ATen/Context.h>

#include "cuda/layer/runtime.h"
#endif

#ifndef FUSED_LSTM_CUDA_VERSION
#define FUSED_LSTM_CUDA_VERSION ""
#endif
#ifndef FUSED_LSTM_CUDA_ARCHS
#define FUSED_LSTM_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace fused_lstm {
namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = FUSED_LSTM_TORCH_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#else
  info["compiler"] = "g++ " __VERSION__;
#endif
  info["cuda"] = FUSED_LSTM_CUDA_VERSION;
  info["cuda_archs"] = FUSED_LSTM_CUDA_ARCHS;
  info["cuda_reason"] = FUSED_LSTM_CUDA_REASON;
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#if defined(FUSED_LSTM_X86)
  info["compiled_isas"] = std::vector<std::string>{"baseline", "avx2", "avx512", "avx512_bf16"};
#else
  info["compiled_isas"] = std::vector<std::string>{"baseline"};
#endif
  return info;
}

void set_cpu_isa(const std::string& name) {
  if (!cpu::set_isa(name.c_str())) {
    throw py::value_error("expected one of baseline, avx2, avx512, avx512_bf16, got '" + name +
                          "'");
  }
}

DType dtype_named(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "float64") return DType::float64;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw py::value_error("expected float32, float64, bfloat16 or float16, got '" + name + "'");
}

CpuMachine machine_for(DType dtype, int threads, std::string* computed) {
  if (dtype == DType::float64) return cpu::machine<double>(threads);
#if defined(FUSED_LSTM_X86)
  if (dtype == DType::bfloat16 && cpu::native_bfloat16()) {
    return cpu::machine<cpu::bfloat16>(threads);
  }
#endif
  if (dtype != DType::float32) *computed = "float32";
  return cpu::machine<float>(threads);
}

py::dict cpu_facts(const LstmProblem& problem, const Steps& steps, const std::string& dtype,
                   int threads) {
  std::string computed = dtype;
  const CpuMachine machine = machine_for(problem.dtype, threads, &computed);
  const CpuPlan plan = plan_forward(problem, steps, machine);
  py::dict facts;
  facts["algorithm"] = plan.algorithm == CpuAlgorithm::dot ? "dot" : "panels";
  facts["why"] = explain_forward(plan, steps);
  facts["threads"] = plan.threads();
  facts["isa"] = cpu::isa_name(cpu::current_isa());
  facts["computed_in"] = computed;
  if (problem.save) {
    const CpuPlan back = plan_backward(problem, steps, machine);
    facts["backward_threads"] = back.threads();
    facts["backward_why"] = explain_backward(back);
  }
  return facts;
}

// "cuda" is the current device, under PyTorch's own setting for TF32.
cuda::Plan cuda_plan(const LstmProblem& problem, const std::string& device, bool allow_tf32) {
#ifdef FUSED_LSTM_WITH_CUDA
  if (device == "cuda") {
    return cuda::plan(problem, cuda::current_device_limits(),
                      at::globalContext().allowTF32CuDNN(at::Float32Op::RNN));
  }
#endif
  return cuda::plan(problem, cuda::known_device(device), allow_tf32);
}

py::dict cuda_facts(const LstmProblem& problem, const cuda::Plan& plan) {
  py::dict facts;
  for (const auto& [name, value] : cuda::facts(problem, plan)) facts[name.c_str()] = value;
  return facts;
}

// The plan of one layer: on "cpu", or on a CUDA architecture such as "cuda:sm_90".
py::dict plan(int64_t steps, int64_t batch, int64_t input_size, int64_t hidden_size,
              int64_t proj_size, int directions, const std::string& dtype,
              const std::string& device, int threads, bool training,
              const std::vector<int64_t>& batch_sizes, bool allow_tf32) {
  const Steps walked = batch_sizes.empty() ? Steps(steps, batch) : Steps(batch_sizes);
  LstmProblem problem;
  problem.steps = walked.steps();
  problem.batch = walked.batch();
  problem.rows = walked.rows();
  problem.input_size = input_size;
  problem.hidden_size = hidden_size;
  problem.proj_size = proj_size;
  problem.directions = directions;
  problem.dtype = dtype_named(dtype);
  problem.save = training;
  problem.packed = walked.packed();
  if (device == "cpu") return cpu_facts(problem, walked, dtype, threads);
  return cuda_facts(problem, cuda_plan(problem, device, allow_tf32));
}

// Peak float32 GFLOP/s of `threads` cores, measured: each runs independent multiply-adds.
double fma_peak(int threads) {
  std::vector<double> rates(threads);
  std::vector<std::thread> team;
  for (double& rate : rates) team.emplace_back([&rate] { rate = cpu::measure_fma_rate(); });
  double total = 0;
  for (int i = 0; i < threads; ++i) {
    team[i].join();
    total += rates[i];
  }
  return 2e-9 * total;
}

}  // namespace
}  // namespace fused_lstm

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fused_lstm;
  m.def("build_info", &build_info, "What the extension was built from and for.");
  m.def(
      "cpu_isa", [] { return cpu::isa_name(cpu::current_isa()); },
      "The instruction set that the CPU kernels use.");
  m.def("set_cpu_isa", &set_cpu_isa, "Caps the instruction set of the CPU kernels.",
        py::arg("name"));
  m.def("fma_peak", &fma_peak, "Measured float32 peak of `threads` cores, in GFLOP/s.",
        py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def("plan", &plan, "How one layer would run, and why.", py::arg("steps"), py::arg("batch"),
        py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size") = 0,
        py::arg("directions") = 1, py::arg("dtype") = "float32", py::arg("device") = "cpu",
        py::arg("threads") = 1, py::arg("training") = false,
        py::arg("batch_sizes") = std::vector<int64_t>{}, py::arg("allow_tf32") = false);
}
