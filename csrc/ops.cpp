// The ops: their schemas. Each device registers its own kernels: csrc/cpu/ops.cpp and
// csrc/cuda/layer/register.cpp.
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
