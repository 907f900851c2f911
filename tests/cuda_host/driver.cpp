// Runs one case through the kernels of one plan on the emulator, for every seed asked for.
//
//   driver in=FILE out=FILE plan=gate_step|block|grid|cluster dtype=fp32|tf32|bf16|fp16|fp64
//          T= B= H= reverse=0|1|01 [sizes=3,2,1] [state=1] [grad_y=1] [grad_state=1] [pad=]
//          [reg_tiles=] [unit_tiles= k_warps= groups=] seeds=0,1,2 [omit=SITE]
//
// Writes the outputs as float64, and prints the synchronising calls reached, one a line; omit
// leaves the calls of one of those lines out. Exits 1 with a message if a run fails, if two seeds
// differ in one bit, or if a run without saving differs from one that saves.
#include <iostream>

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

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

template <class Math>
void run_case(const Options& options) {
  if (!options.text("omit").empty()) emulator::omitted = options.number("omit");
  std::vector<double> first;
  for (const int64_t seed : options.list("seeds")) {
    const std::vector<double> result = run<Math>(options, seed, true);
    if (first.empty()) first = result;
    if (!same_bits(first, result)) {
      throw std::runtime_error("seed " + std::to_string(seed) + " gives another result");
    }
  }
  std::ofstream out(options.text("out"), std::ios::binary);
  out.write(reinterpret_cast<const char*>(first.data()), first.size() * sizeof(double));
  const std::vector<double> unsaved = run<Math>(options, 1, false);
  out.write(reinterpret_cast<const char*>(unsaved.data()), unsaved.size() * sizeof(double));
  for (const emulator::Site& site : emulator::sites()) {
    std::cout << site.file << ":" << site.line << "\n";
  }
}

void run_dtype(const Options& options) {
  const std::string dtype = options.text("dtype");
  if (dtype == "fp32") return run_case<Fp32>(options);
  if (dtype == "tf32") return run_case<Tf32>(options);
  if (dtype == "bf16") return run_case<Bf16>(options);
  if (dtype == "fp16") return run_case<Fp16>(options);
  if (dtype == "fp64") return run_case<Fp64>(options);
  throw std::runtime_error("no such dtype: " + dtype);
}

}  // namespace driver

int main(int argc, char** argv) {
  try {
    driver::run_dtype(driver::Options(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
