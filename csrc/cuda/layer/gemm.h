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

// The products of one call of an op. Made once per call, so that between two products of plan D, or
// a product and a kernel, the issuing thread does nothing else.
class Gemm {
 public:
  Gemm(Arithmetic arithmetic, Stream stream);
  ~Gemm();
  Gemm(const Gemm&) = delete;

  // out = a b, or out += a b. Sums in float32 (float64 for fp64), also across parts of k that are
  // summed apart; products rounded to TF32 only for tf32.
  void operator()(const Matrix& out, const Operand& a, const Operand& b, bool accumulate) const;

 private:
  Arithmetic arithmetic_;
  Stream stream_;
  void* handle_ = nullptr;  // cublasHandle_t
  int math_mode_ = 0;       // of the handle before
};

}  // namespace fused_lstm::cuda
