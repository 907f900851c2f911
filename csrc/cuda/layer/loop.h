// What plan C's blocks need besides the operands.
#pragma once

#include <ATen/core/Tensor.h>

#include "cuda/layer/layer.h"

namespace fused_lstm::cuda {

// [D, exchange_bytes()], all bits set; undefined for plans that exchange nothing through L2.
at::Tensor make_exchange(const Layer& layer, const Loop& loop, int operands);

}  // namespace fused_lstm::cuda
