// The plan in words and numbers.
#include "cuda/plan.h"

namespace fused_lstm::cuda {

const char* name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::block:
      return "block";
    case Algorithm::cluster:
      return "cluster";
    case Algorithm::grid:
      return "grid";
    case Algorithm::steps:
      break;
  }
  return "steps";
}

const char* name(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::fp64:
      return "fp64";
    case Arithmetic::fp32:
      return "fp32";
    case Arithmetic::tf32:
      return "tf32";
    case Arithmetic::bf16:
      return "bf16";
    case Arithmetic::fp16:
      break;
  }
  return "fp16";
}

Arithmetic arithmetic_of(DType dtype, bool allow_tf32) {
  switch (dtype) {
    case DType::float64:
      return Arithmetic::fp64;
    case DType::float32:
      return allow_tf32 ? Arithmetic::tf32 : Arithmetic::fp32;
    case DType::bfloat16:
      return Arithmetic::bf16;
    case DType::float16:
      break;
  }
  return Arithmetic::fp16;
}

int element_size(Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::fp64) return 8;
  return arithmetic == Arithmetic::bf16 || arithmetic == Arithmetic::fp16 ? 2 : 4;
}

int accumulator_size(Arithmetic arithmetic) { return arithmetic == Arithmetic::fp64 ? 8 : 4; }

bool tensor_core(Arithmetic arithmetic) {
  return arithmetic != Arithmetic::fp64 && arithmetic != Arithmetic::fp32;
}

namespace {

using Facts = std::vector<std::pair<std::string, Fact>>;

void add_pass(Facts& facts, const std::string& prefix, const Pass& pass) {
  const auto add = [&](const char* key, Fact value) { facts.emplace_back(prefix + key, value); };
  add("step_us", pass.step_us);
  add("start_us", pass.start_us);
  add("rejected", pass.rejected);
  const Loop& loop = pass.loop;
  if (loop.algorithm == Algorithm::steps) return;
  add("threads", int64_t{loop.threads});
  add("registers", int64_t{loop.registers});
  add("shared_bytes", loop.shared_bytes);
  add("blocks", loop.blocks);
  add("reg_tiles", int64_t{loop.reg_tiles});
  if (loop.algorithm == Algorithm::block) return;
  add("cluster", int64_t{loop.cluster});
  add("unit_tiles", int64_t{loop.slices.unit_tiles});
  add("slices", int64_t{loop.slices.slices});
  add("groups", int64_t{loop.slices.groups});
}

}  // namespace

std::vector<std::pair<std::string, Fact>> facts(const LstmProblem& problem, const Plan& plan) {
  Facts facts;
  facts.emplace_back("algorithm", std::string(name(plan.forward.loop.algorithm)));
  facts.emplace_back("why", plan.forward.why);
  facts.emplace_back("arithmetic", std::string(name(plan.arithmetic)));
  facts.emplace_back("floor_us", plan.floor_us);
  add_pass(facts, "", plan.forward);
  if (problem.save) {
    facts.emplace_back("backward_algorithm", std::string(name(plan.backward.loop.algorithm)));
    facts.emplace_back("backward_why", plan.backward.why);
    add_pass(facts, "backward_", plan.backward);
  }
  return facts;
}

}  // namespace fused_lstm::cuda
