// The ops: their schemas, and how a call comes to its derivative. The kernels are registered beside
// their code, in csrc/cpu and in csrc/cuda/layer/register.cpp.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "autograd.h"
#include "checks.h"
#include "ops.h"

namespace fused_lstm {
namespace {

using at::Tensor;
using Program = std::tuple<Tensor, Tensor, Tensor>;
using ProgramOp = Program(const Tensor&, const OptionalTensor&, const OptionalTensor&,
                          const OptionalTensor&, at::TensorList, at::IntArrayRef);

// Whether a derivative with respect to one of the arguments is being recorded.
template <class... Tensors>
bool any_recorded(const Tensors&... tensors) {
  const auto is_recorded = [](const Tensor& tensor) {
    return (at::GradMode::is_enabled() && tensor.requires_grad()) ||
           tensor._fw_grad(/*level=*/0).defined();
  };
  return (any_tensor(is_recorded, tensors) || ...);
}

// Members of a row are read where they lie below a vmap alone: what differentiates takes rows. A
// graph that was traced below a vmap may be differentiated afterwards.
Tensor rows_of_members(const Tensor& x) { return x.dim() == 4 ? x.flatten(1, 2) : x; }

// A call that was not asked to save says nothing of what its node did.
Forward saved_or_not(Forward out, bool save) {
  if (save) return out;
  std::get<3>(out) = std::get<0>(out).new_empty({0});
  std::get<4>(out) = std::get<4>(out).new_empty({0});
  return out;
}

// At autograd's keys a call either is recorded, under a transform by fused_lstm/autograd.py, or
// goes on to its device. Passing these keys by would drop the derivative in silence; a boxed
// kernel, which is the default, costs as much as a step of a small layer.
Forward forward_autograd(c10::DispatchKeySet keys, const Tensor& x,
                         const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                         const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse,
                         bool save) {
  static const auto op = find_op<ForwardOp>("fused_lstm::lstm_layer");
  static const auto recorded = find_op<ForwardOp>("fused_lstm::_lstm_layer_recorded");
  if (any_recorded(x, h0, c0, weights)) {
    const Tensor rows = rows_of_members(x);
    const LayerArguments layer{rows, batch_sizes, h0, c0, weights.vec(), reverse, std::nullopt};
    if (is_plain(layer)) return saved_or_not(recorded_layer(keys, layer), save);
    return recorded.call(rows, batch_sizes, h0, c0, weights, std::move(reverse), save);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, batch_sizes, h0, c0, weights,
                       std::move(reverse), save);
}

std::vector<Tensor> backward_autograd(c10::DispatchKeySet keys, const OptionalTensor& grad_y,
                                      const OptionalTensor& grad_h_n,
                                      const OptionalTensor& grad_c_n, const Tensor& x,
                                      const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                                      const OptionalTensor& c0, at::TensorList weights,
                                      c10::List<bool> reverse, const Tensor& y, const Tensor& gates,
                                      const Tensor& c, c10::List<bool> needs) {
  static const auto op = find_op<BackwardOp>("fused_lstm::lstm_layer_backward");
  static const auto recorded = find_op<BackwardOp>("fused_lstm::_lstm_layer_backward_recorded");
  if (any_recorded(grad_y, grad_h_n, grad_c_n, x, h0, c0, weights)) {
    TORCH_CHECK(x.dim() < 4, "fused_lstm: expected x of shape [T, B, I] where a derivative of the ",
                "backward pass is recorded, got ", x.sizes());
    return recorded.call(grad_y, grad_h_n, grad_c_n, x, batch_sizes, h0, c0, weights,
                         std::move(reverse), y, gates, c, std::move(needs));
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, grad_y, grad_h_n, grad_c_n, x,
                       batch_sizes, h0, c0, weights, std::move(reverse), y, gates, c,
                       std::move(needs));
}

Forward sequence_autograd(c10::DispatchKeySet keys, const Tensor& x,
                          const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                          const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse,
                          const OptionalTensor& lengths, const OptionalTensor& reset,
                          const OptionalTensor& reset_h, const OptionalTensor& reset_c, bool save,
                          int64_t keep_every, bool compact) {
  static const auto op = find_op<SequenceOp>("fused_lstm::lstm_sequence");
  static const auto recorded = find_op<SequenceOp>("fused_lstm::_lstm_sequence_recorded");
  if (any_recorded(x, h0, c0, weights, reset_h, reset_c)) {
    const LayerArguments layer{
        x,
        batch_sizes,
        h0,
        c0,
        weights.vec(),
        reverse,
        SequenceArguments{lengths, reset, reset_h, reset_c, keep_every, compact}};
    if (is_plain(layer)) return saved_or_not(recorded_layer(keys, layer), save);
    return recorded.call(x, batch_sizes, h0, c0, weights, std::move(reverse), lengths, reset,
                         reset_h, reset_c, save, keep_every, compact);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, batch_sizes, h0, c0, weights,
                       std::move(reverse), lengths, reset, reset_h, reset_c, save, keep_every,
                       compact);
}

std::vector<Tensor> sequence_backward_autograd(
    c10::DispatchKeySet keys, const OptionalTensor& grad_y, const OptionalTensor& grad_h_n,
    const OptionalTensor& grad_c_n, const OptionalTensor& grad_c, const Tensor& x,
    const OptionalTensor& batch_sizes, const OptionalTensor& h0, const OptionalTensor& c0,
    at::TensorList weights, c10::List<bool> reverse, const OptionalTensor& lengths,
    const OptionalTensor& reset, const OptionalTensor& reset_h, const OptionalTensor& reset_c,
    const Tensor& y, const Tensor& gates, const Tensor& c, c10::List<bool> needs,
    int64_t keep_every, bool compact) {
  static const auto op = find_op<SequenceBackwardOp>("fused_lstm::lstm_sequence_backward");
  static const auto recorded =
      find_op<SequenceBackwardOp>("fused_lstm::_lstm_sequence_backward_recorded");
  if (any_recorded(grad_y, grad_h_n, grad_c_n, grad_c, x, h0, c0, weights, reset_h, reset_c)) {
    return recorded.call(grad_y, grad_h_n, grad_c_n, grad_c, x, batch_sizes, h0, c0, weights,
                         std::move(reverse), lengths, reset, reset_h, reset_c, y, gates, c,
                         std::move(needs), keep_every, compact);
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, grad_y, grad_h_n, grad_c_n, grad_c,
                       x, batch_sizes, h0, c0, weights, std::move(reverse), lengths, reset, reset_h,
                       reset_c, y, gates, c, std::move(needs), keep_every, compact);
}

// Of the ops that the rules of vmap call where no derivative is asked for. They have none, and a
// graph that was traced there and is differentiated afterwards would lose it in silence.
void refuse_derivative(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                       torch::jit::Stack* stack) {
  for (const c10::IValue& argument : torch::jit::last(*stack, op.schema().arguments().size())) {
    const bool recorded = argument.isTensor()       ? any_recorded(argument.toTensor())
                          : argument.isTensorList() ? any_recorded(argument.toTensorVector())
                                                    : false;
    TORCH_CHECK_NOT_IMPLEMENTED(
        !recorded, op.schema().name(), " has no derivative: a graph holds it where torch.vmap was ",
        "traced or compiled without one. Trace the function that takes the derivative, or call ",
        "the layer itself");
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

c10::List<bool> as_flags(at::IntArrayRef values) {
  c10::List<bool> flags;
  for (const int64_t value : values) flags.push_back(value != 0);
  return flags;
}

Program program_autograd(c10::DispatchKeySet keys, const Tensor& x,
                         const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                         const OptionalTensor& c0, at::TensorList weights,
                         at::IntArrayRef reverse) {
  static const auto op = find_op<ProgramOp>("fused_lstm::lstm");
  static const auto recorded = find_op<ForwardOp>("fused_lstm::_lstm_layer_recorded");
  if (any_recorded(x, h0, c0, weights)) {
    const Tensor rows = rows_of_members(x);
    const LayerArguments layer{rows,          batch_sizes,       h0,          c0,
                               weights.vec(), as_flags(reverse), std::nullopt};
    auto [y, h_n, c_n, gates, c] =
        is_plain(layer) ? recorded_layer(keys, layer)
                        : recorded.call(rows, batch_sizes, h0, c0, weights, layer.reverse, false);
    return {y, h_n, c_n};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.redispatch(keys & c10::after_ADInplaceOrView_keyset, x, batch_sizes, h0, c0, weights,
                       reverse);
}

Program program(const Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                const OptionalTensor& c0, at::TensorList weights, at::IntArrayRef reverse) {
  static const auto op = find_op<ForwardOp>("fused_lstm::lstm_layer");
  auto [y, h_n, c_n, gates, c] = op.call(x, batch_sizes, h0, c0, weights, as_flags(reverse), false);
  return {y, h_n, c_n};
}

// One step of x [B, I] from h0 and c0 [B, H]: a layer of one step. Views cost less here than in
// Python, where five of them take as long as the step.
std::tuple<Tensor, Tensor> cell(const Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0,
                                at::TensorList weights) {
  static const auto op = find_op<ProgramOp>("fused_lstm::lstm");
  const auto one_step = [](const OptionalTensor& state) {
    return is_given(state) ? OptionalTensor(state->unsqueeze(0)) : std::nullopt;
  };
  const int64_t forward[] = {0};
  auto [y, h, c] =
      op.call(x.unsqueeze(0), std::nullopt, one_step(h0), one_step(c0), weights, forward);
  // In place: views would be refused where the caller changes or detaches them in place.
  return {h.squeeze_(0), c.squeeze_(0)};
}

}  // namespace
}  // namespace fused_lstm

#define FUSED_LSTM_FORWARD                                                                     \
  "(Tensor x, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, bool[] reverse, " \
  "bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor c)"
#define FUSED_LSTM_BACKWARD                                                              \
  "(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, Tensor? batch_sizes, " \
  "Tensor? h0, Tensor? c0, Tensor[] weights, bool[] reverse, Tensor y, Tensor gates, "   \
  "Tensor c, bool[] needs) -> Tensor[]"
#define FUSED_LSTM_SEQUENCE                                                                    \
  "(Tensor x, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, bool[] reverse, " \
  "Tensor? lengths, Tensor? reset, Tensor? reset_h, Tensor? reset_c, bool save, "              \
  "int keep_every, bool compact) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor c)"
#define FUSED_LSTM_SEQUENCE_BACKWARD                                                           \
  "(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_c, Tensor x, "            \
  "Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, bool[] reverse, "            \
  "Tensor? lengths, Tensor? reset, Tensor? reset_h, Tensor? reset_c, Tensor y, Tensor gates, " \
  "Tensor c, bool[] needs, int keep_every, bool compact) -> Tensor[]"

TORCH_LIBRARY(fused_lstm, m) {
  // On the CPU x may be [T, B, V, I] as well: rows of V members, which make a batch of B * V.
  m.def("lstm_layer" FUSED_LSTM_FORWARD);
  m.def("lstm_layer_backward" FUSED_LSTM_BACKWARD);
  // The layer over sequences with lengths [B], cut where reset [T, B] says so and begun anew from
  // reset_h and reset_c; with gradients into c, and steps computed again in backward: see
  // fused_lstm/sequences.py. Where `compact`, gates and c are those of live rows only, in an order
  // of the op's own. Apart, for each argument costs a call of a small layer some of its time.
  m.def("lstm_sequence" FUSED_LSTM_SEQUENCE);
  m.def("lstm_sequence_backward" FUSED_LSTM_SEQUENCE_BACKWARD);
  // The same with their derivatives under transforms, in Python.
  m.def("_lstm_layer_recorded" FUSED_LSTM_FORWARD);
  m.def("_lstm_layer_backward_recorded" FUSED_LSTM_BACKWARD);
  m.def("_lstm_sequence_recorded" FUSED_LSTM_SEQUENCE);
  m.def("_lstm_sequence_backward_recorded" FUSED_LSTM_SEQUENCE_BACKWARD);
  // The backward op, with the gradients of the pre-activations [D, N, 4H] behind the others.
  m.def("_lstm_layer_backward_gates" FUSED_LSTM_BACKWARD);
  // V problems of tensors with the members in front, but for batch_sizes, which they share.
  m.def("_lstm_ensemble" FUSED_LSTM_FORWARD);
  m.def("_lstm_ensemble_backward" FUSED_LSTM_BACKWARD);
  // Rows of V members next to each other, left [N * V, L] and each right [N * V, R]: of every
  // member the sums of left[n]^T right[n], [V, L, R], and behind them those of left[n], [V, L].
  m.def("_member_products(Tensor left, Tensor[] right, int members) -> Tensor[]");
  // The layer in a program: it says nothing of what is saved, in types that every tracer can write.
  m.def(
      "lstm(Tensor x, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, "
      "int[] reverse) -> (Tensor y, Tensor h_n, Tensor c_n)");
  m.def("lstm_cell(Tensor x, Tensor? h0, Tensor? c0, Tensor[] weights) -> (Tensor h, Tensor c)");
}

TORCH_LIBRARY_IMPL(fused_lstm, Autograd, m) {
  m.impl("lstm_layer", TORCH_FN(fused_lstm::forward_autograd));
  m.impl("lstm_layer_backward", TORCH_FN(fused_lstm::backward_autograd));
  m.impl("lstm_sequence", TORCH_FN(fused_lstm::sequence_autograd));
  m.impl("lstm_sequence_backward", TORCH_FN(fused_lstm::sequence_backward_autograd));
  m.impl("lstm", TORCH_FN(fused_lstm::program_autograd));
  for (const char* op : {"_lstm_layer_backward_gates", "_lstm_ensemble", "_lstm_ensemble_backward",
                         "_member_products"}) {
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&fused_lstm::refuse_derivative>());
  }
}

TORCH_LIBRARY_IMPL(fused_lstm, CompositeExplicitAutograd, m) {
  m.impl("lstm", TORCH_FN(fused_lstm::program));
}

TORCH_LIBRARY_IMPL(fused_lstm, CompositeImplicitAutograd, m) {
  m.impl("lstm_cell", TORCH_FN(fused_lstm::cell));
}

TORCH_LIBRARY_IMPL(fused_lstm, FuncTorchBatchedDecomposition, m) {
  m.impl("lstm_cell", TORCH_FN(fused_lstm::cell));
}
