// From PyTorch's element types to those of the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace fused_lstm::cpu {

// Whether this processor has kernels for the type. float16, and bfloat16 without a bfloat16 dot
// product, are computed in float32.
inline bool has_kernels(c10::ScalarType type) {
  if (type == c10::kBFloat16) return native_bfloat16();
  return type == c10::kFloat || type == c10::kDouble;
}

// Calls f with a value of the kernels' element type, for a type that has_kernels().
template <class F>
void with_type(c10::ScalarType type, const F& f) {
#if defined(FUSED_LSTM_X86)
  if (type == c10::kBFloat16) return f(bfloat16{});
#endif
  if (type == c10::kDouble) return f(double{});
  f(float{});
}

// The elements of a tensor; null for none.
template <class T>
const T* data(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_data(const at::Tensor& tensor) {
  return tensor.defined() && tensor.numel() > 0 ? static_cast<T*>(tensor.mutable_data_ptr())
                                                : nullptr;
}

}  // namespace fused_lstm::cpu
