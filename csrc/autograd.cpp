#include "autograd.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>

namespace fused_lstm {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Gradients& transformed_gradients() {
  static Gradients gradients;
  return gradients;
}

// Whether autograd alone is at work: no level of torch.func, no mapping over a value by autograd
// itself (is_grads_batched), no tangent beside one. The wrappers of torch.func the dispatcher takes
// off before an op comes to autograd.
template <class... Tensors>
bool none_transformed(const Tensors&... tensors) {
  const auto is_transformed = [](const Tensor& tensor) {
    return tensor.key_set().has(c10::DispatchKey::Batched) ||
           tensor._fw_grad(/*level=*/0).defined();
  };
  // Included for as long as a level of torch.func is active, also where it is its turn.
  const bool level =
      c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
  return !level && !(any_tensor(is_transformed, tensors) || ...);
}

// Whether a caller may change the output before backward, as that of torch.nn.LSTM. There it may
// not where oneDNN runs, which saves the output too: dense, without a projection, in float32 and
// bfloat16.
bool may_change_in_place(const Tensor& y, bool packed, bool projected) {
  const at::ScalarType type = y.scalar_type();
  return packed || projected || (type != at::kFloat && type != at::kBFloat16);
}

// A tensor without memory that counts the changes of `tensor`.
Tensor counter_of(const Tensor& tensor) {
  Tensor counter = at::empty({0}, at::kByte);
  torch::autograd::impl::set_version_counter(counter,
                                             torch::autograd::impl::version_counter(tensor));
  return counter;
}

// The output [.., D*P] from what forward saved: gates [D, N, 4H], of which the last are o, and c.
Tensor output_of(const Tensor& gates, const Tensor& c, at::TensorList weights, int64_t directions) {
  const Tensor o = gates.narrow(-1, 3 * c.size(-1), c.size(-1));
  Tensor h = o.mul(c.tanh()).to(gates.scalar_type());
  const int64_t per_direction = static_cast<int64_t>(weights.size()) / directions;
  if (per_direction % 2 == 1) {
    std::vector<Tensor> projected;
    for (int64_t d = 0; d < directions; ++d) {
      projected.push_back(h[d].matmul(weights[(d + 1) * per_direction - 1].t()));
    }
    h = at::stack(projected);
  }
  return h.transpose(0, 1).flatten(1);
}

// What forward has beside the differentiable arguments, and leaves beside the outputs.
struct LayerState {
  c10::DispatchKeySet keys;
  OptionalTensor batch_sizes;
  c10::List<bool> reverse;
  Tensor gates, c;
};

class LayerFunction : public torch::autograd::Function<LayerFunction> {
 public:
  static constexpr bool is_traceable = true;  // by compiled autograd

  static variable_list forward(AutogradContext* context, const Tensor& x, const OptionalTensor& h0,
                               const OptionalTensor& c0, at::TensorList weights,
                               LayerState* state) {
    static const auto op = find_op<ForwardOp>("fused_lstm::lstm_layer");
    const bool projected = weights.size() / state->reverse.size() % 2 == 1;
    Tensor y, h_n, c_n;
    {
      const at::AutoDispatchBelowADInplaceOrView guard;
      std::tie(y, h_n, c_n, state->gates, state->c) =
          op.redispatch(state->keys & c10::after_ADInplaceOrView_keyset, x, state->batch_sizes, h0,
                        c0, weights, state->reverse, /*save=*/true);
    }
    Tensor saved_y = y;
    if (may_change_in_place(y, is_given(state->batch_sizes), projected)) {
      const Tensor counter = counter_of(y);
      context->saved_data["version"] = static_cast<int64_t>(counter._version());
      context->saved_data["counter"] = counter;
      saved_y = y.variable_data();
    }
    const Tensor none;
    variable_list saved{x,
                        state->batch_sizes.value_or(none),
                        h0.value_or(none),
                        c0.value_or(none),
                        saved_y,
                        state->gates,
                        state->c};
    saved.insert(saved.end(), weights.begin(), weights.end());
    context->save_for_backward(std::move(saved));
    context->saved_data["reverse"] = state->reverse;
    context->set_materialize_grads(false);
    return {y, h_n, c_n};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads);
};

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

BackwardCall read_call(AutogradContext* context, const variable_list& grads) {
  const variable_list saved = context->get_saved_variables();
  BackwardCall call;
  call.grad_y = if_defined(grads[0]);
  call.grad_h_n = if_defined(grads[1]);
  call.grad_c_n = if_defined(grads[2]);
  call.x = saved[0];
  call.batch_sizes = if_defined(saved[1]);
  call.h0 = if_defined(saved[2]);
  call.c0 = if_defined(saved[3]);
  call.y = saved[4];
  call.gates = saved[5];
  call.c = saved[6];
  call.weights.assign(saved.begin() + 7, saved.end());
  call.reverse = context->saved_data["reverse"].toBoolList();
  size_t edge = 0;  // one for each tensor that forward was given
  call.needs.push_back(context->needs_input_grad(edge++));
  for (const OptionalTensor* state : {&call.h0, &call.c0}) {
    call.needs.push_back(is_given(*state) && context->needs_input_grad(edge++));
  }
  for (size_t k = 0; k < call.weights.size(); ++k) {
    call.needs.push_back(context->needs_input_grad(edge++));
  }
  return call;
}

bool output_has_changed(AutogradContext* context) {
  const auto counter = context->saved_data.find("counter");
  return counter != context->saved_data.end() &&
         counter->second.toTensor()._version() != context->saved_data["version"].toInt();
}

variable_list LayerFunction::backward(AutogradContext* context, const variable_list& grads) {
  static const auto op = find_op<BackwardOp>("fused_lstm::lstm_layer_backward");
  BackwardCall call = read_call(context, grads);
  variable_list result(call.needs.size() + 1);  // nothing for the state, the last argument
  if (!call.grad_y && !call.grad_h_n && !call.grad_c_n) return result;
  if (output_has_changed(context)) {
    call.y = output_of(call.gates, call.c, call.weights, call.reverse.size()).view_as(call.y);
  }
  if (!none_transformed(call.grad_y, call.grad_h_n, call.grad_c_n, call.x, call.h0, call.c0,
                        at::TensorList(call.weights))) {
    const std::vector<OptionalTensor> found = transformed_gradients()(call);
    for (size_t k = 0; k < found.size(); ++k) result[k] = found[k].value_or(Tensor());
    return result;
  }
  std::vector<Tensor> found =
      op.call(call.grad_y, call.grad_h_n, call.grad_c_n, call.x, call.batch_sizes, call.h0, call.c0,
              call.weights, call.reverse, call.y, call.gates, call.c, call.needs);
  for (size_t k = 0; k < call.needs.size(); ++k) {
    if (call.needs[k]) result[k] = std::move(found[k]);
  }
  return result;
}

}  // namespace

bool is_plain(const Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0,
              at::TensorList weights) {
  return none_transformed(x, h0, c0, weights);
}

Forward recorded_layer(c10::DispatchKeySet keys, const Tensor& x, const OptionalTensor& batch_sizes,
                       const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
                       c10::List<bool> reverse) {
  LayerState state{keys, batch_sizes, std::move(reverse), {}, {}};
  variable_list out = LayerFunction::apply(x, h0, c0, weights, &state);
  return {std::move(out[0]), std::move(out[1]), std::move(out[2]), std::move(state.gates),
          std::move(state.c)};
}

void set_transformed_gradients(Gradients gradients) {
  transformed_gradients() = std::move(gradients);
}

}  // namespace fused_lstm
