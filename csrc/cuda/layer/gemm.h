// Matrix products on a stream, on matrices that lie in rows.
#pragma once

#include "cuda/launch.h"

namespace fused_lstm::cuda {

// Element [i, j] is data[i * stride + j].
struct Matrix {
  void* data;
  int64_t rows, cols, stride;
};

// A matrix on the right-hand side; where transposed, `matrix` holds [cols, rows].
struct Operand {
  Matrix matrix;
  bool transposed = false;
};

inline Operand transposed(const Matrix& matrix) { return {matrix, true}; }

// out = a b, or out += a b; sums in float32 (float64 for fp64), of TF32 products only for tf32.
void gemm(Arithmetic arithmetic, const Matrix& out, const Operand& a, const Operand& b,
          bool accumulate, Stream stream);

}  // namespace fused_lstm::cuda
