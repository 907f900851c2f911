// Runs one case through the kernels of one plan on the emulator, for every seed asked for.
//
//   driver in=FILE out=FILE plan=gate_step|block|grid|cluster dtype=fp32|tf32|bf16|fp16|fp64
//          T= B= H= reverse=0|1|01 [sizes=3,2,1] [bias=1] [state=1] [grad_y=1] [grad_state=1]
//          [pad=] [reg_tiles=] [unit_tiles= unit_parts= threads= groups=] seeds=0,1,2 [omit=SITE]
//          [no_release=1] [no_acquire=1]
//   driver in=FILE out=FILE plan=activations dtype=...
//
// Writes the outputs as float64, and prints the synchronising calls reached, one a line; omit
// leaves the calls of one of those lines out. Exits 1 with a message if a run fails, or if two
// seeds differ in one bit.
#include "driver.h"

#include <iostream>

namespace driver {

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
    const driver::Options options(argc, argv);
    if (!options.text("omit").empty()) emulator::omitted = options.number("omit");
    emulator::no_release = options.number("no_release") != 0;
    emulator::no_acquire = options.number("no_acquire") != 0;
    driver::run_dtype(options);
    for (const emulator::Site& site : emulator::sites()) {
      std::cout << site.file << ":" << site.line << "\n";
    }
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
