// pybind11: what is not an op. Build facts, plans as dictionaries, and what each device adds.
#include <ATen/autocast_mode.h>
#include <c10/core/InferenceMode.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "autograd.h"
#include "cpu/bindings.h"
#include "cpu/kernels.h"
#include "cpu/team.h"
#include "cuda/bindings.h"

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
#if defined(FUSED_LSTM_CUDA_TRACE)
  info["cuda_trace"] = true;
#else
  info["cuda_trace"] = false;
#endif
  info["openmp"] = cpu::has_thread_pool();
  info["compiled_isas"] = cpu::compiled_isas();
  return info;
}

// The plan of one layer: on "cpu", or on a CUDA architecture such as "cuda:sm_90".
py::dict plan(int64_t steps, int64_t batch, int64_t input_size, int64_t hidden_size,
              int64_t proj_size, int directions, const std::string& dtype,
              const std::string& device, int threads, bool training,
              const std::vector<int64_t>& batch_sizes, bool allow_tf32, const py::dict& machine,
              const std::string& request, int64_t keep_every) {
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
  problem.keep_every = training ? keep_every : 0;
  problem.packed = walked.packed();
  if (device == "cpu") return cpu::plan_facts(problem, walked, threads, machine, request);
  return cuda::plan_facts(problem, device, allow_tf32, request);
}

std::vector<bool> as_vector(const c10::List<bool>& flags) { return {flags.begin(), flags.end()}; }

// `call` with the GIL, and with a Python function that is never released: a backward pass may be
// the last to run in a process.
template <class Call>
Gradients by_python(const py::function& function, Call call) {
  return [function = function.inc_ref().ptr(), call](const BackwardCall& b) {
    const py::gil_scoped_acquire gil;
    return call(py::handle(function), b).template cast<std::vector<OptionalTensor>>();
  };
}

void set_gradients(const py::function& of_layer, const py::function& of_sequence) {
  set_transformed_gradients(
      by_python(of_layer,
                [](py::handle function, const BackwardCall& b) {
                  const LayerArguments& a = b.layer;
                  return function(b.grad_y, b.grad_h_n, b.grad_c_n, a.x, a.batch_sizes, a.h0, a.c0,
                                  a.weights, as_vector(a.reverse), b.y, b.gates, b.c,
                                  as_vector(b.needs));
                }),
      by_python(of_sequence, [](py::handle function, const BackwardCall& b) {
        const LayerArguments& a = b.layer;
        const SequenceArguments& s = *a.sequence;
        return function(b.grad_y, b.grad_h_n, b.grad_c_n, b.grad_c, a.x, a.batch_sizes, a.h0, a.c0,
                        a.weights, as_vector(a.reverse), s.lengths, s.reset, s.reset_h, s.reset_c,
                        b.y, b.gates, b.c, as_vector(b.needs), s.keep_every, s.compact);
      }));
}

}  // namespace
}  // namespace fused_lstm

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace fused_lstm;
  m.def("build_info", &build_info, "What the extension was built from and for.");
  cpu::bind(m);
  m.def(
      "autocast_weight",
      [](const at::Tensor& weight, at::ScalarType type) {
        // What is kept serves later calls too, of which some may record gradients.
        const c10::InferenceMode inference(false);
        const at::AutoGradMode recorded(true);
        return at::autocast::cached_cast(type, weight, weight.device().type());
      },
      "A weight in autocast's dtype, by PyTorch's own cache: cast once until the outermost "
      "autocast "
      "ends.",
      py::arg("weight"), py::arg("dtype"));
  m.def("set_transformed_gradients", &set_gradients,
        "What computes the gradients where a transform is at work in backward, with the arguments "
        "of lstm_layer_backward and of lstm_sequence_backward.",
        py::arg("of_layer"), py::arg("of_sequence"));
  m.def("plan", &plan, "How one layer would run, and why.", py::arg("steps"), py::arg("batch"),
        py::arg("input_size"), py::arg("hidden_size"), py::arg("proj_size") = 0,
        py::arg("directions") = 1, py::arg("dtype") = "float32", py::arg("device") = "cpu",
        py::arg("threads") = 0, py::arg("training") = false,
        py::arg("batch_sizes") = std::vector<int64_t>{}, py::arg("allow_tf32") = false,
        py::arg("machine") = py::dict(), py::arg("request") = "", py::arg("keep_every") = 0);
  cuda::bind(m);
}
