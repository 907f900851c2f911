// The ops' schemas. Each device registers its own kernels: csrc/cpu/ops.cpp and
// csrc/cuda/layer/register.cpp. Gradients are fused_lstm/autograd.py's, above the dispatcher: its
// autograd keys are passed by, where the default would run a boxed kernel that costs as much as a
// step of a small layer.
#include <torch/library.h>

TORCH_LIBRARY(fused_lstm, m) {
  m.def(
      "lstm_layer(Tensor x, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, "
      "bool[] reverse, bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor c)");
  m.def(
      "lstm_layer_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, "
      "Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, bool[] reverse, Tensor y, "
      "Tensor gates, Tensor c, bool[] needs) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(fused_lstm, Autograd, m) {
  m.impl("lstm_layer", torch::CppFunction::makeFallthrough());
  m.impl("lstm_layer_backward", torch::CppFunction::makeFallthrough());
}
