// The kernel tables of every instruction set, defined in isa_*.cpp.
#pragma once

#include "kernels.h"

namespace fused_lstm::cpu {

struct IsaTables {
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  double (*fma_chains)(int64_t rounds);  // runs them, returns how many multiply-adds those were
};

extern const IsaTables kBaselineTables;
#if defined(FUSED_LSTM_X86)
extern const IsaTables kAvx2Tables;
extern const IsaTables kAvx512Tables;
extern const Kernels<bfloat16>* const kAvx512Bf16Kernels;
#endif

}  // namespace fused_lstm::cpu
