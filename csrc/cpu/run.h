// One layer's forward and backward pass on tensors, for the ops. Arguments are checked, of a type
// that has kernels, and have rows.
#pragma once

#include <vector>

#include "checks.h"
#include "ops.h"

namespace fused_lstm::cpu {

// The arguments that both passes share.
struct Arguments {
  const at::Tensor& x;
  const OptionalTensor &h0, &c0;
  at::TensorList weights;
  const c10::List<bool>& reverse;
};

// The tensors of the backward op that the forward op does not have.
struct Saved {
  at::Tensor grad_y, grad_h_n, grad_c_n, grad_c, y, gates, c;
};

// y, h_n, c_n, gates and c of the forward op, not yet filled.
Forward allocate(const LayerCall& call, const at::Tensor& x);
void compute(const LayerCall& call, const Arguments& arguments, const Forward& out);

// Gradients of x, h0, c0 and each weight, empty where not needed, not yet filled. One more behind
// them is filled with those of the pre-activations [D, N, 4H].
std::vector<at::Tensor> allocate_gradients(const LayerCall& call, const at::Tensor& x,
                                           at::TensorList weights, const c10::List<bool>& needs);
void compute_gradients(const LayerCall& call, const Arguments& arguments, const Saved& saved,
                       const std::vector<at::Tensor>& grads);

// The same where there are no rows: the last state is the first, and so is its gradient.
void compute_nothing(const OptionalTensor& h0, const OptionalTensor& c0, const Forward& out);
void compute_no_gradients(const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                          const c10::List<bool>& needs, const std::vector<at::Tensor>& grads);

// Undefined for none.
at::Tensor dense(const OptionalTensor& tensor);
// In another type, for what has no kernels in its own.
OptionalTensor converted(const OptionalTensor& tensor, at::ScalarType type);
std::vector<at::Tensor> converted(at::TensorList tensors, at::ScalarType type);

}  // namespace fused_lstm::cpu
