// What plan C's blocks need besides the operands.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/layer/layer.h"

namespace fused_lstm::cuda {

struct Exchange {
  at::Tensor buffer;  // [D, exchange_bytes()] zeroed
  at::Tensor flags;   // [D, flag_count()] zeroed
};

// Both undefined for plans that exchange nothing through L2.
Exchange make_exchange(const Layer& layer, const Loop& loop, int operands);

}  // namespace fused_lstm::cuda
