// The derivative of one layer in plain autograd; that of a layer under a transform of torch.func or
// in forward mode is in fused_lstm/autograd.py.
#pragma once

#include <functional>
#include <vector>

#include "ops.h"

namespace fused_lstm {

// Whether recorded_layer() gives the derivative of a call with these tensors: neither a transform
// of torch.func nor forward mode is at work.
bool is_plain(const at::Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0,
              at::TensorList weights);

// The op lstm_layer as a node of autograd's graph; of (y, h_n, c_n, gates, c) the first three have
// gradients.
Forward recorded_layer(c10::DispatchKeySet keys, const at::Tensor& x,
                       const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                       const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse);

// A call of the op lstm_layer_backward.
struct BackwardCall {
  OptionalTensor grad_y, grad_h_n, grad_c_n;
  at::Tensor x;
  OptionalTensor batch_sizes, h0, c0;
  std::vector<at::Tensor> weights;
  c10::List<bool> reverse;
  at::Tensor y, gates, c;
  c10::List<bool> needs;
};

// Sets what computes the gradients where a transform is at work in backward.
using Gradients = std::function<std::vector<OptionalTensor>(const BackwardCall&)>;
void set_transformed_gradients(Gradients gradients);

}  // namespace fused_lstm
