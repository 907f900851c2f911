// One problem per member of an ensemble: what vmap over weights runs. Tensors have the members in
// front, batch_sizes apart, which they share.
#include <torch/library.h>

#include "cpu/dispatch.h"
#include "cpu/memory_pool.h"
#include "cpu/precision.h"
#include "cpu/run.h"
#include "cpu/take_turns.h"

namespace fused_lstm::cpu {
namespace {

using at::Tensor;

Tensor member(const Tensor& stacked, int64_t k) { return stacked.select(0, k); }
OptionalTensor member(const OptionalTensor& stacked, int64_t k) {
  return is_given(stacked) ? OptionalTensor(stacked->select(0, k)) : std::nullopt;
}
std::vector<Tensor> member(at::TensorList stacked, int64_t k) {
  std::vector<Tensor> found;
  found.reserve(stacked.size());
  for (const Tensor& tensor : stacked) found.push_back(tensor.select(0, k));
  return found;
}

void check_members(int64_t size, const char* name, const OptionalTensor& tensor) {
  TORCH_CHECK(!is_given(tensor) || (tensor->dim() > 0 && tensor->size(0) == size),
              "fused_lstm: expected ", name, " of ", size, " members, got ", tensor->sizes());
}

void check_members(int64_t size, const char* name, at::TensorList tensors) {
  for (const Tensor& tensor : tensors) check_members(size, name, OptionalTensor(tensor));
}

int64_t members_of(const Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0,
                   at::TensorList weights) {
  TORCH_CHECK(x.dim() > 0 && x.size(0) > 0, "fused_lstm: expected x of members, got ", x.sizes());
  check_members(x.size(0), "h0", h0);
  check_members(x.size(0), "c0", c0);
  check_members(x.size(0), "weights", weights);
  return x.size(0);
}

Tensor stacked(int64_t size, const Tensor& like) {
  std::vector<int64_t> shape = like.sizes().vec();
  shape.insert(shape.begin(), size);
  return pooled_tensor(shape, like.options());
}

Forward lstm_ensemble(const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                      const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse,
                      bool save) {
  const int64_t size = members_of(x, h0, c0, weights);
  const LayerCall call = read_call(member(x, 0), batch_sizes, member(h0, 0), member(c0, 0),
                                   member(weights, 0), reverse, save);
  const at::ScalarType type = x.scalar_type();
  if (!has_kernels(type)) {
    const at::ScalarType wide = at::kFloat;
    const ExactProducts exact;
    auto [y, h_n, c_n, gates, c] =
        lstm_ensemble(x.to(wide), batch_sizes, converted(h0, wide), converted(c0, wide),
                      converted(weights, wide), reverse, save);
    return {y.to(type), h_n.to(type), c_n.to(type), gates.to(type), c};
  }
  const Forward out =
      std::apply([&](const auto&... tensors) { return Forward{stacked(size, tensors)...}; },
                 allocate(call, member(x, 0)));
  if (call.problem.rows == 0) {
    compute_nothing(h0, c0, out);
    return out;
  }
  take_turns(size, [&](int64_t k) {
    const OptionalTensor h0_k = member(h0, k), c0_k = member(c0, k);
    const std::vector<Tensor> weights_k = member(weights, k);
    const Forward out_k =
        std::apply([&](const auto&... tensors) { return Forward{member(tensors, k)...}; }, out);
    compute(call, {member(x, k), h0_k, c0_k, weights_k, reverse}, out_k);
  });
  return out;
}

std::vector<Tensor> lstm_ensemble_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse, const Tensor& y,
    const Tensor& gates, const Tensor& c, c10::List<bool> needs) {
  const int64_t size = members_of(x, h0, c0, weights);
  check_members(size, "grad_y", grad_y);
  check_members(size, "grad_h_n", grad_h_n);
  check_members(size, "grad_c_n", grad_c_n);
  check_members(size, "y, gates and c", {y, gates, c});
  const LayerCall call = read_call(member(x, 0), batch_sizes, member(h0, 0), member(c0, 0),
                                   member(weights, 0), reverse, true);
  check_saved(call, member(grad_y, 0), member(grad_h_n, 0), member(grad_c_n, 0), member(x, 0),
              member(y, 0), member(gates, 0), member(c, 0), needs, weights.size());
  const at::ScalarType type = x.scalar_type();
  if (!has_kernels(type)) {
    const at::ScalarType wide = at::kFloat;
    const ExactProducts exact;
    return converted(
        lstm_ensemble_backward(converted(grad_y, wide), converted(grad_h_n, wide),
                               converted(grad_c_n, wide), x.to(wide), batch_sizes,
                               converted(h0, wide), converted(c0, wide), converted(weights, wide),
                               reverse, y.to(wide), gates.to(wide), c, needs),
        type);
  }
  std::vector<Tensor> grads;
  for (const Tensor& one : allocate_gradients(call, member(x, 0), member(weights, 0), needs)) {
    grads.push_back(stacked(size, one));
  }
  if (call.problem.rows == 0) {
    compute_no_gradients(grad_h_n, grad_c_n, needs, grads);
    return grads;
  }
  take_turns(size, [&](int64_t k) {
    const OptionalTensor h0_k = member(h0, k), c0_k = member(c0, k);
    const std::vector<Tensor> weights_k = member(weights, k);
    Saved saved;
    saved.grad_y = dense(member(grad_y, k));
    saved.grad_h_n = dense(member(grad_h_n, k));
    saved.grad_c_n = dense(member(grad_c_n, k));
    saved.y = member(y, k).contiguous();
    saved.gates = member(gates, k).contiguous();
    saved.c = member(c, k).contiguous();
    compute_gradients(call, {member(x, k), h0_k, c0_k, weights_k, reverse}, saved,
                      member(grads, k));
  });
  return grads;
}

}  // namespace
}  // namespace fused_lstm::cpu

TORCH_LIBRARY_IMPL(fused_lstm, CPU, m) {
  m.impl("_lstm_ensemble", TORCH_FN(fused_lstm::cpu::lstm_ensemble));
  m.impl("_lstm_ensemble_backward", TORCH_FN(fused_lstm::cpu::lstm_ensemble_backward));
}
