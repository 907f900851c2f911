// The CUDA kernels of the ops that csrc/schema.cpp defines.
#include <torch/library.h>

#include "cuda/layer/layer.h"

TORCH_LIBRARY_IMPL(fused_lstm, CUDA, m) {
  m.impl("lstm_layer", TORCH_FN(fused_lstm::cuda::lstm_layer));
  m.impl("lstm_layer_backward", TORCH_FN(fused_lstm::cuda::lstm_layer_backward<false>));
  m.impl("_lstm_layer_backward_gates", TORCH_FN(fused_lstm::cuda::lstm_layer_backward<true>));
}
