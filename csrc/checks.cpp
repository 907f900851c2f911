#include "checks.h"

#include <ATen/EmptyTensor.h>
#include <c10/util/Exception.h>

namespace fused_lstm {

size_t bytes_needed(const at::Tensor& tensor) {
  return at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.element_size(),
                                          tensor.storage_offset());
}

void check_memory(const at::Tensor& tensor, const char* name) {
  if (tensor.numel() == 0) return;
  const size_t held = tensor.storage().nbytes(), needed = bytes_needed(tensor);
  TORCH_CHECK(held >= needed, "fused_lstm: expected ", name, " with its memory, ", needed,
              " bytes, got a tensor of shape ", tensor.sizes(), " whose storage holds ", held);
}

void check_tensor(const at::Tensor& tensor, const char* name, at::IntArrayRef shape,
                  at::ScalarType type, at::Device device) {
  TORCH_CHECK(tensor.sizes() == shape, "fused_lstm: expected ", name, " of shape ", shape, ", got ",
              tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == type, "fused_lstm: expected ", name, " of dtype ", type,
              ", got ", tensor.scalar_type());
  TORCH_CHECK(tensor.device() == device, "fused_lstm: expected ", name, " on ", device, ", got ",
              tensor.device());
  check_memory(tensor, name);
}

void check_tensor(const OptionalTensor& tensor, const char* name, at::IntArrayRef shape,
                  const at::Tensor& like) {
  if (is_given(tensor)) check_tensor(*tensor, name, shape, like.scalar_type(), like.device());
}

namespace {

DType dtype_of(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return DType::float32;
    case at::kDouble:
      return DType::float64;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kHalf:
      return DType::float16;
    default:
      TORCH_CHECK(false, "fused_lstm: expected x of float32, float64, bfloat16 or float16, got ",
                  x.scalar_type());
  }
}

Steps read_steps(const at::Tensor& x, const OptionalTensor& batch_sizes, bool members) {
  if (!is_given(batch_sizes)) {
    if (members && x.dim() == 4) return {x.size(0), x.size(1) * x.size(2)};
    TORCH_CHECK(x.dim() == 3, "fused_lstm: expected x of shape [T, B, I], got ", x.sizes());
    return {x.size(0), x.size(1)};
  }
  TORCH_CHECK(x.dim() == 2, "fused_lstm: expected packed x of shape [N, I], got ", x.sizes());
  TORCH_CHECK(
      batch_sizes->is_cpu() && batch_sizes->scalar_type() == at::kLong && batch_sizes->dim() == 1,
      "fused_lstm: expected batch_sizes of shape [T], int64, on the CPU, got ",
      batch_sizes->toString(), " of shape ", batch_sizes->sizes(), " on ", batch_sizes->device());
  const at::Tensor contiguous = batch_sizes->contiguous();
  const int64_t* data = contiguous.const_data_ptr<int64_t>();
  std::vector<int64_t> sizes(data, data + contiguous.numel());
  for (size_t t = 0; t < sizes.size(); ++t) {
    TORCH_CHECK(sizes[t] > 0 && (t == 0 || sizes[t] <= sizes[t - 1]),
                "fused_lstm: expected batch_sizes that are positive and do not grow, got ",
                sizes[t], " at step ", t);
  }
  Steps steps(std::move(sizes));
  TORCH_CHECK(steps.rows() == x.size(0), "fused_lstm: expected packed x of ", steps.rows(),
              " rows, the sum of batch_sizes, got ", x.size(0));
  return steps;
}

void check_weights(const LstmProblem& p, at::TensorList weights, int per_direction,
                   const at::Tensor& x) {
  const int64_t gates = 4 * p.hidden_size;
  for (int d = 0; d < p.directions; ++d) {
    const at::Tensor* w = weights.data() + d * per_direction;
    auto check = [&](int i, const char* name, at::IntArrayRef shape) {
      check_tensor(w[i], name, shape, x.scalar_type(), x.device());
    };
    check(0, "w_ih", {gates, p.input_size});
    check(1, "w_hh", {gates, p.output_size()});
    if (p.bias) check(2, "b_ih", {gates});
    if (p.bias) check(3, "b_hh", {gates});
    if (p.proj_size > 0) check(per_direction - 1, "w_hr", {p.proj_size, p.hidden_size});
  }
}

}  // namespace

at::ScalarType state_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

LayerCall read_call(const at::Tensor& x, const OptionalTensor& batch_sizes,
                    const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
                    const c10::List<bool>& reverse, bool save, bool members) {
  const auto directions = int(reverse.size());
  TORCH_CHECK(directions == 1 || directions == 2, "fused_lstm: expected 1 or 2 directions, got ",
              directions);
  LayerCall call;
  call.per_direction = int(weights.size()) / directions;
  TORCH_CHECK(call.per_direction >= 2 && call.per_direction <= 5 &&
                  call.per_direction * directions == int(weights.size()),
              "fused_lstm: expected 2 to 5 weights for each direction, got ", weights.size(),
              " for ", directions);
  TORCH_CHECK(weights[0].dim() == 2 && weights[0].size(0) % 4 == 0 && weights[0].size(0) > 0,
              "fused_lstm: expected w_ih of shape [4H, I], got ", weights[0].sizes());
  call.steps = read_steps(x, batch_sizes, members);
  check_memory(x, "x");

  LstmProblem& p = call.problem;
  p.steps = call.steps.steps();
  p.batch = call.steps.batch();
  p.rows = call.saved_rows = call.steps.rows();
  p.input_size = x.size(-1);
  p.hidden_size = weights[0].size(0) / 4;
  if (call.per_direction % 2 == 1) {
    const at::Tensor& w_hr = weights[call.per_direction - 1];
    TORCH_CHECK(w_hr.dim() == 2 && w_hr.size(0) > 0,
                "fused_lstm: expected w_hr of shape [P, H], got ", w_hr.sizes());
    p.proj_size = w_hr.size(0);
  }
  p.directions = directions;
  p.bias = call.per_direction >= 4;
  p.dtype = dtype_of(x);
  p.save = save;
  p.packed = call.steps.packed();
  check_weights(p, weights, call.per_direction, x);
  check_tensor(h0, "h0", {directions, p.batch, p.output_size()}, x);
  check_tensor(c0, "c0", {directions, p.batch, p.hidden_size}, x);
  return call;
}

std::vector<int64_t> output_shape(const LstmProblem& p, const at::Tensor& x) {
  const int64_t features = p.directions * p.output_size();
  if (x.dim() == 2) return {x.size(0), features};
  return {p.steps, p.batch, features};
}

void check_saved(const LayerCall& call, const OptionalTensor& grad_y,
                 const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                 const at::Tensor& x, const at::Tensor& y, const at::Tensor& gates,
                 const at::Tensor& c, const c10::List<bool>& needs, size_t weights) {
  const LstmProblem& p = call.problem;
  const std::vector<int64_t> y_shape = output_shape(p, x);
  check_tensor(y, "y", y_shape, x.scalar_type(), x.device());
  check_tensor(grad_y, "grad_y", y_shape, x);
  check_tensor(grad_h_n, "grad_h_n", {p.directions, p.batch, p.output_size()}, x);
  check_tensor(grad_c_n, "grad_c_n", {p.directions, p.batch, p.hidden_size}, x);
  if (p.keep_every == 0) {
    check_tensor(gates, "gates", {p.directions, call.saved_rows, 4 * p.hidden_size},
                 x.scalar_type(), x.device());
  }
  check_tensor(c, "c", {p.directions, call.saved_rows, p.hidden_size}, state_type(x.scalar_type()),
               x.device());
  TORCH_CHECK(needs.size() == weights + 3, "fused_lstm: expected ", weights + 3,
              " flags in needs, for x, h0, c0 and each weight, got ", needs.size());
}

}  // namespace fused_lstm
