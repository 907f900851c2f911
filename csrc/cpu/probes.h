// What the benchmark holds results against: rates that this machine reaches with nothing else to
// do.
#pragma once

#include <cstdint>
#include <string>

namespace fused_lstm::cpu {

// GFLOP/s of `threads` cores that run independent multiply-adds of this dtype.
double multiply_add_peak(int threads, const std::string& dtype);

// The same of float32 as it is now: of one trial that takes about `seconds`.
double multiply_add_rate(int threads, double seconds);

// GFLOP/s of `threads` threads at once, each multiplying `rows` rows with `panels` panels of this
// depth, one after the other: by oneDNN's micro-kernel, as torch has it, and by this package's own.
// 0 where it cannot be had. Panels of one's own are 4 vectors wide. The best of `trials` counts.
double brgemm_rate(int64_t rows, int64_t columns, int64_t depth, int64_t panels,
                   const std::string& dtype, int threads, int trials);
double panel_rate(int64_t rows, int64_t depth, int64_t panels, const std::string& dtype,
                  int threads);

// GB/s of `threads` threads at once, each reading its part of `bytes` again and again.
double read_rate(int64_t bytes, int threads);

}  // namespace fused_lstm::cpu
