// Reads the arguments of the ops once, for every device: refuses what does not fit together, and
// says what was expected and what came. Past this point shapes are facts.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "problem.h"

namespace fused_lstm {

using OptionalTensor = std::optional<at::Tensor>;

struct LayerCall {
  LstmProblem problem;
  Steps steps{0, 0};
  int per_direction = 0;   // weights of one direction: 2, 3 (projection), 4 (bias) or 5 (both)
  int64_t saved_rows = 0;  // of gates and c: all, or the live ones if problem.compact

  bool projected() const { return problem.proj_size > 0; }
};

// With `members`, x may be [T, B, V, I] too: every row has V members, which make B * V rows.
LayerCall read_call(const at::Tensor& x, const OptionalTensor& batch_sizes,
                    const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
                    const c10::List<bool>& reverse, bool save, bool members = false);

// Of y: [T, B, D * P], or packed [N, D * P].
std::vector<int64_t> output_shape(const LstmProblem& problem, const at::Tensor& x);

// Of the storage, up to the tensor's last element.
size_t bytes_needed(const at::Tensor& tensor);

// Refuses a tensor without its memory: a storage can be resized under its tensors, as FSDP does
// with weights that it has shared out.
void check_memory(const at::Tensor& tensor, const char* name);

// Refuse a tensor that is not as a kernel takes it.
void check_tensor(const at::Tensor& tensor, const char* name, at::IntArrayRef shape,
                  at::ScalarType type, at::Device device);
void check_tensor(const OptionalTensor& tensor, const char* name, at::IntArrayRef shape,
                  const at::Tensor& like);

// What the backward op was given beside the forward's arguments.
void check_saved(const LayerCall& call, const OptionalTensor& grad_y,
                 const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                 const at::Tensor& x, const at::Tensor& y, const at::Tensor& gates,
                 const at::Tensor& c, const c10::List<bool>& needs, size_t weights);

// float64 for float64, else float32: what c is carried in.
at::ScalarType state_type(at::ScalarType type);

inline bool is_given(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined();
}

// Whether `test` holds for the tensor, or one of the tensors, of an argument of an op.
template <class Test>
bool any_tensor(const Test& test, const at::Tensor& tensor) {
  return tensor.defined() && test(tensor);
}
template <class Test>
bool any_tensor(const Test& test, const OptionalTensor& tensor) {
  return is_given(tensor) && test(*tensor);
}
template <class Test>
bool any_tensor(const Test& test, at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) {
    if (any_tensor(test, tensor)) return true;
  }
  return false;
}

}  // namespace fused_lstm
