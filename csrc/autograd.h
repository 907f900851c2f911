// The derivative of one layer in plain autograd; that of a layer under a transform of torch.func or
// in forward mode is in fused_lstm/autograd.py and fused_lstm/_sequence_op.py.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "ops.h"

namespace fused_lstm {

// What lstm_sequence takes beside the arguments of lstm_layer.
struct SequenceArguments {
  OptionalTensor lengths, reset, reset_h, reset_c;
  int64_t keep_every = 0;
  bool compact = false;

  // Whether all of c is there, and has gradients.
  bool c_is_complete() const { return keep_every == 0 && !compact; }
};

// The arguments of lstm_layer, or with `sequence` of lstm_sequence.
struct LayerArguments {
  at::Tensor x;
  OptionalTensor batch_sizes, h0, c0;
  std::vector<at::Tensor> weights;
  c10::List<bool> reverse;
  std::optional<SequenceArguments> sequence;
};

// Whether autograd alone is at work on a call with these tensors, neither a transform of torch.func
// nor forward mode: whether recorded_layer() gives its derivative.
bool is_plain(const LayerArguments& a);

// The op as a node of autograd's graph; of (y, h_n, c_n, gates, c) the first three have gradients,
// and c where it is complete.
Forward recorded_layer(c10::DispatchKeySet keys, const LayerArguments& a);

// A call of the op's backward. `needs` is for x, h0, c0, each weight, and reset_h and reset_c.
struct BackwardCall {
  OptionalTensor grad_y, grad_h_n, grad_c_n, grad_c;
  LayerArguments layer;
  at::Tensor y, gates, c;
  c10::List<bool> needs;
};

// Sets what computes the gradients where a transform is at work in backward.
using Gradients = std::function<std::vector<OptionalTensor>(const BackwardCall&)>;
void set_transformed_gradients(Gradients of_layer, Gradients of_sequence);

}  // namespace fused_lstm
