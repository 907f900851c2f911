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

struct TransformedGradients {
  Gradients of_layer, of_sequence;
};

TransformedGradients& transformed_gradients() {
  static TransformedGradients gradients;
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
// not where it is what oneDNN saves: dense, without a projection, in float32 and bfloat16, of one
// direction. Of two it is a copy of theirs.
bool may_change_in_place(const Tensor& y, const LayerArguments& a) {
  const size_t directions = a.reverse.size();
  const bool projected = a.weights.size() / directions % 2 == 1;
  const at::ScalarType type = y.scalar_type();
  return is_given(a.batch_sizes) || projected || directions == 2 ||
         (type != at::kFloat && type != at::kBFloat16);
}

// A tensor without memory that counts the changes of `tensor`, from 1 on: the tensor that compiled
// autograd has in its place counts from 0, and says nothing of changes. The kernels' outputs begin
// with 1, for whoever keeps one, as a policy of checkpointing does, looks whether it has changed.
Tensor counter_of(const Tensor& tensor) {
  Tensor counter = at::empty({0}, at::kByte);
  torch::autograd::impl::set_version_counter(counter,
                                             torch::autograd::impl::version_counter(tensor));
  if (counter._version() == 0) torch::autograd::impl::bump_version(counter);
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
  const LayerArguments& layer;
  Tensor gates, c;
};

Forward run_op(c10::DispatchKeySet keys, const LayerArguments& a) {
  static const auto layer = find_op<ForwardOp>("fused_lstm::lstm_layer");
  static const auto sequence = find_op<SequenceOp>("fused_lstm::lstm_sequence");
  const at::AutoDispatchBelowADInplaceOrView guard;
  keys = keys & c10::after_ADInplaceOrView_keyset;
  if (!a.sequence) {
    return layer.redispatch(keys, a.x, a.batch_sizes, a.h0, a.c0, a.weights, a.reverse,
                            /*save=*/true);
  }
  const SequenceArguments& s = *a.sequence;
  return sequence.redispatch(keys, a.x, a.batch_sizes, a.h0, a.c0, a.weights, a.reverse, s.lengths,
                             s.reset, s.reset_h, s.reset_c, /*save=*/true, s.keep_every, s.compact);
}

class LayerFunction : public torch::autograd::Function<LayerFunction> {
 public:
  static constexpr bool is_traceable = true;  // by compiled autograd

  static variable_list forward(AutogradContext* context, const Tensor& x, const OptionalTensor& h0,
                               const OptionalTensor& c0, at::TensorList weights,
                               const OptionalTensor& reset_h, const OptionalTensor& reset_c,
                               LayerState* state);

  static variable_list backward(AutogradContext* context, const variable_list& grads);
};

// Saved before the weights, in this order.
enum SavedPlace { X, BATCH_SIZES, H0, C0, LENGTHS, RESET, RESET_H, RESET_C, Y, GATES, C, WEIGHTS };

variable_list LayerFunction::forward(AutogradContext* context, const Tensor& x,
                                     const OptionalTensor& h0, const OptionalTensor& c0,
                                     at::TensorList weights, const OptionalTensor& reset_h,
                                     const OptionalTensor& reset_c, LayerState* state) {
  const LayerArguments& a = state->layer;
  Tensor y, h_n, c_n;
  std::tie(y, h_n, c_n, state->gates, state->c) = run_op(state->keys, a);
  Tensor saved_y = y;
  if (!a.sequence && may_change_in_place(y, a)) {
    const Tensor counter = counter_of(y);
    context->saved_data["version"] = static_cast<int64_t>(counter._version());
    context->saved_data["counter"] = counter;
    saved_y = y.variable_data();
  }
  variable_list saved(WEIGHTS);
  saved[X] = x;
  saved[Y] = saved_y;
  saved[GATES] = state->gates;
  saved[C] = state->c;
  const auto save = [&](SavedPlace place, const OptionalTensor& tensor) {
    if (is_given(tensor)) saved[place] = *tensor;
  };
  save(BATCH_SIZES, a.batch_sizes);
  save(H0, h0);
  save(C0, c0);
  if (a.sequence) {
    save(LENGTHS, a.sequence->lengths);
    save(RESET, a.sequence->reset);
    save(RESET_H, reset_h);
    save(RESET_C, reset_c);
    context->saved_data["keep_every"] = a.sequence->keep_every;
    context->saved_data["compact"] = a.sequence->compact;
  }
  saved.insert(saved.end(), weights.begin(), weights.end());
  context->save_for_backward(std::move(saved));
  context->saved_data["reverse"] = a.reverse;
  context->set_materialize_grads(false);
  if (a.sequence && a.sequence->c_is_complete()) return {y, h_n, c_n, state->c};
  return {y, h_n, c_n};
}

OptionalTensor if_defined(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

BackwardCall read_call(AutogradContext* context, const variable_list& grads) {
  const variable_list saved = context->get_saved_variables();
  const auto given = [&](SavedPlace place) { return if_defined(saved[place]); };
  BackwardCall call;
  call.grad_y = if_defined(grads[0]);
  call.grad_h_n = if_defined(grads[1]);
  call.grad_c_n = if_defined(grads[2]);
  if (grads.size() > 3) call.grad_c = if_defined(grads[3]);
  call.layer = {saved[X],
                given(BATCH_SIZES),
                given(H0),
                given(C0),
                std::vector<Tensor>(saved.begin() + WEIGHTS, saved.end()),
                context->saved_data["reverse"].toBoolList(),
                std::nullopt};
  const auto keep_every = context->saved_data.find("keep_every");
  if (keep_every != context->saved_data.end()) {
    call.layer.sequence = SequenceArguments{given(LENGTHS),
                                            given(RESET),
                                            given(RESET_H),
                                            given(RESET_C),
                                            keep_every->second.toInt(),
                                            context->saved_data["compact"].toBool()};
  }
  call.y = saved[Y];
  call.gates = saved[GATES];
  call.c = saved[C];
  size_t edge = 0;  // one for each tensor that forward was given
  const auto ask = [&](bool is_there) {
    call.needs.push_back(is_there && context->needs_input_grad(edge++));
  };
  ask(true);
  ask(call.layer.h0.has_value());
  ask(call.layer.c0.has_value());
  for (size_t k = 0; k < call.layer.weights.size(); ++k) ask(true);
  if (call.layer.sequence) {
    ask(call.layer.sequence->reset_h.has_value());
    ask(call.layer.sequence->reset_c.has_value());
  }
  return call;
}

bool output_may_have_changed(AutogradContext* context) {
  const auto counter = context->saved_data.find("counter");
  return counter != context->saved_data.end() &&
         counter->second.toTensor()._version() != context->saved_data["version"].toInt();
}

std::vector<Tensor> run_backward_op(const BackwardCall& b) {
  static const auto layer = find_op<BackwardOp>("fused_lstm::lstm_layer_backward");
  static const auto sequence = find_op<SequenceBackwardOp>("fused_lstm::lstm_sequence_backward");
  const LayerArguments& a = b.layer;
  if (!a.sequence) {
    return layer.call(b.grad_y, b.grad_h_n, b.grad_c_n, a.x, a.batch_sizes, a.h0, a.c0, a.weights,
                      a.reverse, b.y, b.gates, b.c, b.needs);
  }
  const SequenceArguments& s = *a.sequence;
  return sequence.call(b.grad_y, b.grad_h_n, b.grad_c_n, b.grad_c, a.x, a.batch_sizes, a.h0, a.c0,
                       a.weights, a.reverse, s.lengths, s.reset, s.reset_h, s.reset_c, b.y, b.gates,
                       b.c, b.needs, s.keep_every, s.compact);
}

variable_list LayerFunction::backward(AutogradContext* context, const variable_list& grads) {
  BackwardCall call = read_call(context, grads);
  const LayerArguments& a = call.layer;
  // For all arguments of forward: nothing for resets that there are not, and for the state.
  variable_list result(3 + a.weights.size() + 2 + 1);
  if (!call.grad_y && !call.grad_h_n && !call.grad_c_n && !call.grad_c) return result;
  if (output_may_have_changed(context)) {
    call.y = output_of(call.gates, call.c, a.weights, a.reverse.size()).view_as(call.y);
  }
  if (!is_plain(a) || !none_transformed(call.grad_y, call.grad_h_n, call.grad_c_n, call.grad_c)) {
    const TransformedGradients& gradients = transformed_gradients();
    const auto found = (a.sequence ? gradients.of_sequence : gradients.of_layer)(call);
    for (size_t k = 0; k < found.size(); ++k) result[k] = found[k].value_or(Tensor());
    return result;
  }
  std::vector<Tensor> found = run_backward_op(call);
  for (size_t k = 0; k < call.needs.size(); ++k) {
    if (call.needs[k]) result[k] = std::move(found[k]);
  }
  return result;
}

}  // namespace

bool is_plain(const LayerArguments& a) {
  const OptionalTensor none;
  return none_transformed(a.x, a.h0, a.c0, at::TensorList(a.weights),
                          a.sequence ? a.sequence->reset_h : none,
                          a.sequence ? a.sequence->reset_c : none);
}

Forward recorded_layer(c10::DispatchKeySet keys, const LayerArguments& a) {
  const OptionalTensor none;
  LayerState state{keys, a, {}, {}};
  variable_list out = LayerFunction::apply(a.x, a.h0, a.c0, at::TensorList(a.weights),
                                           a.sequence ? a.sequence->reset_h : none,
                                           a.sequence ? a.sequence->reset_c : none, &state);
  Tensor c = out.size() > 3 ? std::move(out[3]) : std::move(state.c);
  return {std::move(out[0]), std::move(out[1]), std::move(out[2]), std::move(state.gates),
          std::move(c)};
}

void set_transformed_gradients(Gradients of_layer, Gradients of_sequence) {
  transformed_gradients() = {std::move(of_layer), std::move(of_sequence)};
}

}  // namespace fused_lstm
