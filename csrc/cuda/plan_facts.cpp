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

void add_pass(Facts& all, const std::string& prefix, const Pass& pass) {
  const auto add = [&](const char* key, Fact value) { all.emplace_back(prefix + key, value); };
  add("step_us", pass.step_us);
  add("start_us", pass.start_us);
  add("rejected", pass.rejected);
  if (!pass.unmet.empty()) add("unmet", pass.unmet);
  for (auto& [key, value] : facts(pass.loop)) {
    if (key != "algorithm") add(key.c_str(), value);
  }
}

}  // namespace

Facts facts(const Loop& loop) {
  Facts facts;
  const auto add = [&](const char* key, int64_t value) { facts.emplace_back(key, value); };
  facts.emplace_back("algorithm", std::string(name(loop.algorithm)));
  if (loop.algorithm == Algorithm::steps) return facts;
  add("variant", loop.variant);
  add("threads", loop.threads);
  add("registers", loop.registers);
  add("shared_bytes", loop.shared_bytes);
  add("blocks", loop.blocks);
  add("reg_tiles", loop.reg_tiles);
  if (loop.algorithm == Algorithm::block) return facts;
  add("cluster", loop.cluster);
  add("unit_tiles", loop.slices.unit_tiles);
  add("unit_parts", loop.slices.unit_parts);
  add("slices", loop.slices.slices);
  add("groups", loop.slices.groups);
  return facts;
}

Facts facts(const LstmProblem& problem, const Plan& plan) {
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
