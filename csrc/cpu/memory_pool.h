// Memory for outputs, gradients and what is saved: the next call gets it again.
#pragma once

#include <ATen/core/Tensor.h>

namespace fused_lstm::cpu {

// An uninitialised tensor, whose memory goes back to the pool with its storage.
at::Tensor pooled_tensor(at::IntArrayRef shape, const at::TensorOptions& options);

// Bytes in use, and bytes that wait for the next call.
struct PoolState {
  size_t used, idle;
};
PoolState pool_state();

}  // namespace fused_lstm::cpu
