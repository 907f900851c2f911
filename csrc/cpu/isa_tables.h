// The kernel tables of every instruction set, defined in isa_*.cpp.
#pragma once

#include "kernels.h"

namespace fused_lstm::cpu {

struct IsaTables {
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  double (*multiply_adds_f32)(int64_t rounds);  // see kernels.h
  double (*multiply_adds_f64)(int64_t rounds);
};

// Of pairs of bfloat16, for tensors of bfloat16 and of float32.
struct PairTables {
  const Kernels<bfloat16>* bf16;
  const Kernels<float>* rounded;
  // By the matrix unit.
  const Kernels<bfloat16>* matrix_bf16;
  const Kernels<float>*matrix_rounded, *matrix_split;
};

extern const IsaTables kBaselineTables;
#if defined(FUSED_LSTM_X86)
extern const IsaTables kAvx2Tables;
extern const IsaTables kAvx512Tables;
extern const PairTables kPairTables;
extern double (*const kAvx512Bf16MultiplyAdds)(int64_t rounds);
#endif

}  // namespace fused_lstm::cpu
