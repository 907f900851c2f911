// One layer with all its directions on a CUDA device, in torch's terms: what the op was given, read
// once, and the pieces of forward and backward. Tensors come from PyTorch's allocator, launches go
// to the caller's stream, and nothing waits for the device.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <memory>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cuda/launch.h"
#include "cuda/layer/gemm.h"
#include "problem.h"

namespace fused_lstm::cuda {

struct DirectionWeights {
  at::Tensor w_ih;  // [4H, I]
  at::Tensor w_hh;  // [4H, P]
  at::Tensor b_ih;  // [4H], or undefined; all contiguous
  at::Tensor b_hh;  // [4H], or undefined
  at::Tensor w_hr;  // [P, H], or undefined
  bool reverse;
};

struct Layer {
  LstmProblem problem;
  fused_lstm::Steps steps{0, 0};
  at::Tensor x;               // [N, I] contiguous
  at::Tensor h0;              // [D, B, P] contiguous, or undefined for zeros
  at::Tensor c0;              // [D, B, H] contiguous, or undefined for zeros
  at::Tensor device_offsets;  // [T + 1] int64 on the device; undefined for dense input
  std::vector<DirectionWeights> directions;
  std::vector<int64_t> output_shape;  // of y
  int weights_per_direction = 0;

  Arithmetic arithmetic = Arithmetic::fp32;
  at::ScalarType acc_type = at::kFloat;  // of c and of its gradient
  Stream stream = nullptr;
  std::unique_ptr<Gemm> gemm;

  int64_t output_size() const { return problem.output_size(); }
  bool projected() const { return problem.proj_size > 0; }
  // Step number k in the order in which direction d walks.
  int64_t step(int d, int64_t k) const { return directions[d].reverse ? problem.steps - 1 - k : k; }
  cuda::Steps device_steps() const;
  // out = a b, or out += a b.
  void multiply(const Matrix& out, const Operand& a, const Operand& b, bool accumulate) const {
    (*gemm)(out, a, b, accumulate);
  }
};

Layer read_layer(LayerCall call, const at::Tensor& x, const OptionalTensor& h0,
                 const OptionalTensor& c0, at::TensorList weights, const c10::List<bool>& reverse);

// The plan for this layer here. Kept per thread; good until the next call.
const Plan& plan_layer(const Layer& layer);

// Where the rows of each step begin, as the device is told.
std::vector<OffsetSegment> offset_segments(const fused_lstm::Steps& steps);

// ---- pointers ----

// Element [index, 0, ...] of a contiguous tensor, or of one whose rows are `stride` elements apart.
char* address(const at::Tensor& tensor, int64_t elements);
// Of a contiguous tensor; nullptr where undefined.
void* data(const at::Tensor& tensor);
// Direction d of a [D, ...] tensor; nullptr where undefined.
char* direction_data(const at::Tensor& tensor, int d);
// Rows [first, first + rows) of a [N, cols] slice whose rows lie `stride` elements apart.
Matrix rows_of(char* data, const at::Tensor& like, int64_t first, int64_t rows, int64_t cols,
               int64_t stride);

// ---- plan D, step by step ----

struct ForwardTensors {
  at::Tensor y;      // [N, D * P]
  at::Tensor gates;  // [D, N, 4H]: holds the input projection; activated gates if saving
  at::Tensor c;      // [D, N, H] acc_type; undefined unless saving
  at::Tensor h_n;    // [D, B, P]
  at::Tensor c_n;    // [D, B, H]
};

void forward_steps(const Layer& layer, ForwardTensors& tensors);

struct BackwardTensors {
  at::Tensor gates;     // [D, N, 4H], as saved
  at::Tensor c;         // [D, N, H], as saved
  at::Tensor grad_y;    // [N, D * P] contiguous, or undefined for zeros
  at::Tensor grad_h_n;  // [D, B, P] contiguous, or undefined for zeros
  at::Tensor grad_c_n;  // [D, B, H] contiguous, or undefined for zeros
  at::Tensor dgates;    // [D, N, 4H]
  at::Tensor dproj;     // [D, N, P]: gradient of the projected h; undefined without projection
  at::Tensor dh0;       // [D, B, P]
  at::Tensor dc0;       // [D, B, H]
};

void backward_steps(const Layer& layer, BackwardTensors& tensors);

// ---- the op ----

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> lstm_layer(
    const at::Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse, bool save);

// With kGatesToo the gradients of the pre-activations [D, N, 4H] come behind the others.
template <bool kGatesToo>
std::vector<at::Tensor> lstm_layer_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const at::Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse, const at::Tensor& y,
    const at::Tensor& gates, const at::Tensor& c, c10::List<bool> needs);

}  // namespace fused_lstm::cuda
