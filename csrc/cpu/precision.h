// How PyTorch's settings allow float32 to be multiplied.
#pragma once

#include <ATen/Context.h>

#include <type_traits>

#include "kernels.h"

namespace fused_lstm::cpu {

// The products of this thread are exact while one lives: of tensors that were converted to float32
// and are nobody's float32.
class ExactProducts {
 public:
  ExactProducts() { ++alive(); }
  ~ExactProducts() { --alive(); }
  ExactProducts(const ExactProducts&) = delete;
  ExactProducts& operator=(const ExactProducts&) = delete;

  static int& alive() {
    static thread_local int count = 0;
    return count;
  }
};

// torch.backends.mkldnn.rnn.fp32_precision, or what it stands for. Whoever multiplies asks, as in
// PyTorch's own ops: forward and backward, each when it runs. A graph that was compiled or exported
// holds tensors only, and could not say more.
inline Products allowed_products() {
  if (ExactProducts::alive() > 0) return Products::exact;
  switch (at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::RNN)) {
    case at::Float32Precision::TF32:
      return Products::split;
    case at::Float32Precision::BF16:
      return Products::rounded;
    default:
      return Products::exact;
  }
}

// The kernels for tensors of T in a layer of `batch` rows.
template <class T>
const Kernels<T>& kernels_here(int64_t batch) {
  if constexpr (std::is_same_v<T, float>) return kernels_for<T>(batch, allowed_products());
  return kernels_for<T>(batch);
}

}  // namespace fused_lstm::cpu
