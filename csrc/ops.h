// The ops as C++ calls them: their signatures, which csrc/schema.cpp writes for the dispatcher.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>
#include <vector>

#include "checks.h"

namespace fused_lstm {

using Forward = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using ForwardOp = Forward(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                          const OptionalTensor&, at::TensorList, c10::List<bool>, bool);
using BackwardOp = std::vector<at::Tensor>(const OptionalTensor&, const OptionalTensor&,
                                           const OptionalTensor&, const at::Tensor&,
                                           const OptionalTensor&, const OptionalTensor&,
                                           const OptionalTensor&, at::TensorList, c10::List<bool>,
                                           const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                           c10::List<bool>);

using SequenceOp = Forward(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, at::TensorList, c10::List<bool>,
                           const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, bool, int64_t, bool);
using SequenceBackwardOp = std::vector<at::Tensor>(
    const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const at::Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    at::TensorList, c10::List<bool>, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, const at::Tensor&, const at::Tensor&,
    const at::Tensor&, c10::List<bool>, int64_t, bool);

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace fused_lstm
