#include "cuda/layer/gemm.h"

#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAException.h>
#include <c10/util/Exception.h>

namespace fused_lstm::cuda {

namespace {

struct Types {
  cudaDataType_t element;
  cublasComputeType_t compute;
};

Types types_of(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::fp64:
      return {CUDA_R_64F, CUBLAS_COMPUTE_64F};
    case Arithmetic::tf32:
      return {CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32};
    case Arithmetic::bf16:
      return {CUDA_R_16BF, CUBLAS_COMPUTE_32F};
    case Arithmetic::fp16:
      return {CUDA_R_16F, CUBLAS_COMPUTE_32F};
    case Arithmetic::fp32:
      break;
  }
  return {CUDA_R_32F, CUBLAS_COMPUTE_32F};
}

void clear(Arithmetic arithmetic, const Matrix& out, Stream stream) {
  const size_t size = element_size(arithmetic);
  C10_CUDA_CHECK(cudaMemset2DAsync(out.data, out.stride * size, 0, out.cols * size, out.rows,
                                   static_cast<cudaStream_t>(stream)));
}

void check(cublasStatus_t status, const char* what) {
  TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "fused_lstm: ", what, " failed with status ",
              static_cast<int>(status));
}

}  // namespace

Gemm::Gemm(Arithmetic arithmetic, Stream stream) : arithmetic_(arithmetic), stream_(stream) {
  // PyTorch's handle: this thread's, on the current stream, with a workspace of its allocator.
  const cublasHandle_t handle = at::cuda::getCurrentCUDABlasHandle();
  handle_ = handle;
  cublasMath_t before = CUBLAS_DEFAULT_MATH;
  check(cublasGetMathMode(handle, &before), "cublasGetMathMode");
  math_mode_ = before;
  // The compute type alone decides about TF32. Where cuBLAS cuts a long k into parts, as in the
  // gradient of the weights, it may not add 16-bit sums of parts.
  const auto mode = static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                              CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION);
  check(cublasSetMathMode(handle, mode), "cublasSetMathMode");
}

Gemm::~Gemm() {
  cublasSetMathMode(static_cast<cublasHandle_t>(handle_), static_cast<cublasMath_t>(math_mode_));
}

void Gemm::operator()(const Matrix& out, const Operand& a, const Operand& b,
                      bool accumulate) const {
  const int64_t k = a.transposed ? a.matrix.rows : a.matrix.cols;
  TORCH_INTERNAL_ASSERT(k == (b.transposed ? b.matrix.cols : b.matrix.rows));
  if (out.rows == 0 || out.cols == 0) return;
  if (k == 0) {
    if (!accumulate) clear(arithmetic_, out, stream_);
    return;
  }
  const Types types = types_of(arithmetic_);
  const float alpha = 1, beta = accumulate ? 1 : 0;
  const double alpha64 = 1, beta64 = beta;
  const bool fp64 = arithmetic_ == Arithmetic::fp64;
  // cuBLAS counts by columns: out^T = b^T a^T, and a matrix in rows is its own transpose there.
  const cublasStatus_t status = cublasGemmEx(
      static_cast<cublasHandle_t>(handle_), b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
      a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N, static_cast<int>(out.cols),
      static_cast<int>(out.rows), static_cast<int>(k),
      fp64 ? static_cast<const void*>(&alpha64) : &alpha, b.matrix.data, types.element,
      static_cast<int>(b.matrix.stride), a.matrix.data, types.element,
      static_cast<int>(a.matrix.stride), fp64 ? static_cast<const void*>(&beta64) : &beta, out.data,
      types.element, static_cast<int>(out.stride), types.compute, CUBLAS_GEMM_DEFAULT);
  TORCH_CHECK(status == CUBLAS_STATUS_SUCCESS, "fused_lstm: cublasGemmEx failed with status ",
              static_cast<int>(status), " for a product of [", out.rows, ", ", k, "] and [", k,
              ", ", out.cols, "]");
}

}  // namespace fused_lstm::cuda
