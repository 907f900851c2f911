#include "bindings.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "call_memory.h"
#include "contention.h"
#include "kernels.h"
#include "machine.h"
#include "memory_pool.h"
#include "precision.h"
#include "probes.h"
#include "running.h"
#include "stream.h"
#include "team.h"

namespace py = pybind11;

namespace fused_lstm::cpu {
namespace {

// The machine as the kernels find it that compute a layer of this dtype with `batch` rows.
CpuMachine machine_for(DType dtype, int64_t batch, int threads) {
  if (dtype == DType::float64) return machine(kernels_here<double>(batch), threads);
  if (dtype == DType::float16) return machine(kernels_for<float>(batch), threads);
#if defined(FUSED_LSTM_X86)
  if (dtype == DType::bfloat16 && native_bfloat16()) {
    return machine(kernels_here<bfloat16>(batch), threads);
  }
#endif
  return machine(kernels_here<float>(batch), threads);
}

const char* computed_in(DType dtype, int64_t batch) {
  if (dtype == DType::float64) return "float64";
  if (dtype == DType::float16) return "float32";
  if (dtype == DType::bfloat16 && native_bfloat16()) return "bfloat16";
  switch (products_for(batch, allowed_products())) {
    case Products::split:
      return "float32 with products of two bfloat16 each";
    case Products::rounded:
      return "float32 with products of bfloat16";
    case Products::exact:
      break;
  }
  return "float32";
}

const char* name_of(Algorithm algorithm) { return algorithm == Algorithm::dot ? "dot" : "panels"; }

py::dict facts_of(const CpuMachine& machine) {
  py::dict facts;
  for (const auto& [name, value] : list_facts(machine)) facts[name.c_str()] = value;
  return facts;
}

py::dict facts_of(const CpuPlan& plan) {
  py::dict facts;
  facts["algorithm"] = name_of(plan.algorithm);
  facts["threads"] = plan.threads();
  facts["directions"] = plan.direction_groups;
  facts["rows"] = plan.row_groups;
  facts["units"] = plan.unit_groups;
  facts["fold"] = plan.fold_input;
  facts["chunk"] = plan.chunk_steps;
  facts["in_place"] = plan.in_place;
  facts["predicted_us"] = plan.predicted_ns / 1000;
  return facts;
}

py::object last_plan(bool backward) {
  const std::optional<CpuPlan>& last = backward ? last_plans().backward : last_plans().forward;
  return last ? py::object(facts_of(*last)) : py::none();
}

// `m` with the facts that are given by name.
void set_facts(const py::dict& facts, CpuMachine* m) {
  for (const auto& [name, value] : facts) {
    const auto text = name.cast<std::string>();
    if (!set_fact(*m, text, value.cast<double>())) {
      throw py::value_error("there is no fact '" + text + "' of a machine");
    }
  }
}

}  // namespace

py::dict plan_facts(const LstmProblem& problem, const Steps& steps, int threads,
                    const py::dict& machine, const std::string& request) {
  CpuMachine m =
      machine_for(problem.dtype, problem.batch, threads > 0 ? threads : available_threads());
  set_facts(machine, &m);
  const PlanRequest asked = request.empty() ? requested_plan() : PlanRequest::parse(request);
  const CpuPlan forward = plan_forward(problem, steps, m, asked);
  py::dict facts = facts_of(forward);
  facts["why"] = explain_forward(forward, steps);
  facts["isa"] = isa_name(current_isa());
  facts["computed_in"] = computed_in(problem.dtype, problem.batch);
  if (problem.save) {
    const CpuPlan backward = plan_backward(problem, steps, m, asked);
    for (const auto& [name, value] : facts_of(backward)) {
      facts[("backward_" + name.cast<std::string>()).c_str()] = value;
    }
    facts["backward_why"] = explain_backward(backward);
  }
  return facts;
}

void bind(py::module_& m) {
  bind_stream(m);
  m.def(
      "cpu_isa", [] { return isa_name(current_isa()); },
      "The instruction set that the CPU kernels use.");
  m.def("set_cpu_isa", &set_isa, "Caps the instruction set of the CPU kernels.", py::arg("name"));
  m.def(
      "request_cpu_plan", [](const std::string& text) { request_plan(PlanRequest::parse(text)); },
      "Asks for a plan, as FUSED_LSTM_CPU_PLAN does; \"\" takes that back.", py::arg("text"));
  m.def("last_cpu_plan", &last_plan, "The plan of the last call on this thread, or None.",
        py::arg("backward") = false);
  m.def(
      "memory_pool",
      [] {
        const PoolState state = pool_state();
        return py::dict(py::arg("used") = state.used, py::arg("idle") = state.idle);
      },
      "Bytes of larger tensors that the ops made: in use, and kept for the next call.");
  m.def("kept_workspaces", &kept_workspaces,
        "Bytes of workspaces that are kept for the next calls.");
  py::class_<Contention>(m, "Contention", "How large a team should be; see contention.h.")
      .def(py::init<>())
      .def("record", &Contention::record, py::arg("now"), py::arg("size"), py::arg("taken"),
           py::arg("waited"))
      .def("threads", &Contention::threads, py::arg("now"), py::arg("available"), py::arg("free"));
  m.def("free_cores", &free_cores, "Cores that no other process has use for.", py::arg("proc"),
        py::arg("cores"));
  m.def("record_team", &record_team, "As if a team had run in this process now.", py::arg("size"),
        py::arg("taken"), py::arg("waited"));
  m.def("available_threads", &available_threads, "Threads that a call made here and now may have.");
  m.def(
      "cpu_machine",
      [](const std::string& dtype, int threads, int64_t batch) {
        return facts_of(
            machine_for(dtype_named(dtype), batch, threads > 0 ? threads : available_threads()));
      },
      "What the planner knows of this machine; the first call measures.",
      py::arg("dtype") = "float32", py::arg("threads") = 0, py::arg("batch") = 64);
  m.def(
      "measured_again",
      [](const py::dict& known, const py::dict& again) {
        CpuMachine before, after;
        set_facts(known, &before);
        set_facts(again, &after);
        if (may_be_disturbed(before)) keep_best_teams(after, &before);
        return facts_of(before);
      },
      "What is known of a machine after it was measured again, if it is.", py::arg("known"),
      py::arg("again"));
  m.def("fma_peak", &multiply_add_peak, "Measured peak of `threads` cores, in GFLOP/s.",
        py::arg("threads"), py::arg("dtype") = "float32");
  m.def("fma_rate", &multiply_add_rate,
        "The same in float32 and now, in one trial of about `seconds`.", py::arg("threads"),
        py::arg("seconds"));
  m.def("brgemm_rate", &brgemm_rate,
        "GFLOP/s of oneDNN's micro-kernel for `rows` rows against `panels` packed panels of "
        "`columns` columns, one after the other, on `threads` threads at once: the best of a few "
        "trials of 5 ms.",
        py::arg("rows"), py::arg("columns"), py::arg("depth"), py::arg("panels"),
        py::arg("dtype") = "float32", py::arg("threads") = 1, py::arg("trials") = 5);
  m.def("read_rate", &read_rate,
        "GB/s of `threads` threads at once that read their parts of `bytes` again and again.",
        py::arg("bytes"), py::arg("threads") = 1);
  m.def("panel_rate", &panel_rate, "The same of this package's kernels.", py::arg("rows"),
        py::arg("depth"), py::arg("panels"), py::arg("dtype") = "float32", py::arg("threads") = 1);
}

}  // namespace fused_lstm::cpu
