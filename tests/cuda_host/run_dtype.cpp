// run_case of one arithmetic: compiled with -DMATH=Fp32, Tf32, Bf16, Fp16 and Fp64.
#include "driver.h"
#include "plans.h"

namespace driver {

template <class Math>
std::vector<double> run(const Options& options, uint64_t seed, bool save) {
  Case<Math> c(options, save);
  const std::string plan = options.text("plan");
  if (plan == "gate_step") {
    run_gate_step(c, seed);
  } else if (plan == "block") {
    run_block(c, options, seed);
  } else if (plan == "grid") {
    run_sliced<Math, GridExchange>(c, options, seed);
  } else if (plan == "cluster") {
    run_sliced<Math, ClusterExchange>(c, options, seed);
  } else {
    throw std::runtime_error("no such plan: " + plan);
  }
  return c.results();
}

static void write(std::ofstream& out, const std::vector<double>& values) {
  out.write(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
}

// sigmoid and tanh of the numbers in the input file.
template <class Math>
void run_activations(const Options& options) {
  std::ifstream in(options.text("in"), std::ios::binary);
  std::vector<double> results;
  for (double x; in.read(reinterpret_cast<char*>(&x), sizeof x);) {
    const auto given = static_cast<typename Math::Acc>(x);
    results.push_back(Math::sigmoid(given));
    results.push_back(Math::tanh(given));
  }
  std::ofstream out(options.text("out"), std::ios::binary);
  write(out, results);
}

template <class Math>
void run_case(const Options& options) {
  if (options.text("plan") == "activations") return run_activations<Math>(options);
  std::vector<double> first;
  for (const int64_t seed : options.list("seeds")) {
    const std::vector<double> result = run<Math>(options, seed, true);
    if (first.empty()) first = result;
    if (result.size() != first.size() ||
        std::memcmp(result.data(), first.data(), first.size() * sizeof(double)) != 0) {
      throw std::runtime_error("seed " + std::to_string(seed) + " gives another result");
    }
  }
  std::ofstream out(options.text("out"), std::ios::binary);
  write(out, first);
  write(out, run<Math>(options, 1, false));
}

template void run_case<MATH>(const Options& options);

}  // namespace driver
