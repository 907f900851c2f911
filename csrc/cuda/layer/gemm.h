// Matrix products on a stream, on matrices that lie in rows.
#pragma once

#include <ATen/core/Tensor.h>

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

// out[N, 4H] = x[N, I] w[4H, I]^T + bias[4H]; bias may be undefined. out is contiguous.
void linear(Arithmetic arithmetic, const at::Tensor& out, const at::Tensor& x, const at::Tensor& w,
            const at::Tensor& bias, Stream stream);

}  // namespace fused_lstm::cuda
