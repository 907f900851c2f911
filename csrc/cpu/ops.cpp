// The ops on the CPU: allocation, conversion of types that have no kernels, and dispatch.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "cpu/call_memory.h"
#include "cpu/dispatch.h"
#include "cpu/layer.h"
#include "cpu/memory_pool.h"
#include "cpu/plan_and_run.h"
#include "cpu/precision.h"
#include "cpu/run.h"

namespace fused_lstm::cpu {
namespace {

// The tensors of a call as the kernels read them: dense where they must be, alive while they run.
struct Dense {
  at::Tensor x, h0, c0;
  std::vector<at::Tensor> weights;
};

Dense make_dense(const Arguments& a) {
  Dense t;
  const bool rows_are_dense = a.x.size(-1) <= 1 || a.x.stride(-1) == 1;
  t.x = rows_are_dense ? a.x : a.x.contiguous();
  t.h0 = dense(a.h0);
  t.c0 = dense(a.c0);
  t.weights.reserve(a.weights.size());
  for (const at::Tensor& w : a.weights) t.weights.push_back(w.contiguous());
  return t;
}

template <class T>
Input<T> input_of(const Dense& t) {
  const at::Tensor& x = t.x;
  if (x.dim() == 2) return {data<T>(x), x.stride(0), x.stride(0), 1};
  if (x.dim() == 3) return {data<T>(x), x.stride(0), x.stride(1), x.size(1)};
  const int64_t rows = x.size(1), members = x.size(2);
  if (rows == 1 || x.stride(1) == members * x.stride(2)) {  // one stride after all
    return {data<T>(x), x.stride(0), x.stride(2), rows * members};
  }
  return {data<T>(x), x.stride(0), x.stride(1), rows * members, members, x.stride(2)};
}

template <class T>
void set_weights(const LayerCall& call, const Dense& t, const c10::List<bool>& reverse,
                 DirectionWeights<T>* weights) {
  const LstmProblem& p = call.problem;
  for (int d = 0; d < p.directions; ++d) {
    const at::Tensor* w = t.weights.data() + d * call.per_direction;
    weights[d] = {data<T>(w[0]),
                  data<T>(w[1]),
                  p.bias ? data<T>(w[2]) : nullptr,
                  p.bias ? data<T>(w[3]) : nullptr,
                  call.projected() ? data<T>(w[call.per_direction - 1]) : nullptr,
                  reverse.get(d)};
  }
}

template <class T>
void run_forward(const LayerCall& call, const Dense& t, const c10::List<bool>& reverse,
                 const Forward& out) {
  ForwardArgs<T> args{};
  args.kernels = &kernels_here<T>(call.problem.batch);
  args.problem = call.problem;
  args.steps = &call.steps;
  args.x = input_of<T>(t);
  args.h0 = data<T>(t.h0);
  args.c0 = data<T>(t.c0);
  set_weights<T>(call, t, reverse, args.weights);
  args.y = mutable_data<T>(std::get<0>(out));
  args.h_n = mutable_data<T>(std::get<1>(out));
  args.c_n = mutable_data<T>(std::get<2>(out));
  args.gates = mutable_data<T>(std::get<3>(out));
  args.c = mutable_data<Acc<T>>(std::get<4>(out));
  last_plans().forward = plan_and_run<T>(
      *args.kernels,
      [&](const CpuMachine& m, const PlanRequest& request) {
        return plan_forward(args.problem, call.steps, m, request);
      },
      [&](const CpuPlan& plan) {
        const CallMemory workspace(forward_workspace(args, plan));
        return forward(args, plan, workspace.data());
      });
}

template <class T>
void run_backward(const LayerCall& call, const Dense& t, const Saved& s,
                  const c10::List<bool>& reverse, const std::vector<at::Tensor>& grads) {
  BackwardArgs<T> args{};
  const LstmProblem& p = call.problem;
  args.kernels = &kernels_here<T>(call.problem.batch);
  args.problem = p;
  args.steps = &call.steps;
  args.x = input_of<T>(t);
  args.h0 = data<T>(t.h0);
  args.c0 = data<T>(t.c0);
  set_weights<T>(call, t, reverse, args.weights);
  args.y = data<T>(s.y);
  args.gates = data<T>(s.gates);
  args.c = data<Acc<T>>(s.c);
  args.grad_c = data<Acc<T>>(s.grad_c);
  args.grad_y = data<T>(s.grad_y);
  args.grad_h_n = data<T>(s.grad_h_n);
  args.grad_c_n = data<T>(s.grad_c_n);
  args.dx = mutable_data<T>(grads[0]);
  args.dh0 = mutable_data<T>(grads[1]);
  args.dc0 = mutable_data<T>(grads[2]);
  for (int d = 0; d < p.directions; ++d) {
    const at::Tensor* g = grads.data() + 3 + d * call.per_direction;
    args.grads[d] = {mutable_data<T>(g[0]), mutable_data<T>(g[1]),
                     p.bias ? mutable_data<T>(g[2]) : nullptr,
                     p.bias ? mutable_data<T>(g[3]) : nullptr,
                     call.projected() ? mutable_data<T>(g[call.per_direction - 1]) : nullptr};
  }
  if (grads.size() > 3 + t.weights.size()) args.dgates = mutable_data<T>(grads.back());
  last_plans().backward = plan_and_run<T>(
      *args.kernels,
      [&](const CpuMachine& m, const PlanRequest& request) {
        return plan_backward(args.problem, call.steps, m, request);
      },
      [&](const CpuPlan& plan) {
        const CallMemory workspace(backward_workspace(args, plan));
        return backward(args, plan, workspace.data());
      });
}

}  // namespace

at::Tensor dense(const OptionalTensor& tensor) {
  return is_given(tensor) ? tensor->contiguous() : at::Tensor();
}

std::vector<at::Tensor> converted(at::TensorList tensors, at::ScalarType type) {
  std::vector<at::Tensor> result;
  result.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) result.push_back(tensor.to(type));
  return result;
}

OptionalTensor converted(const OptionalTensor& tensor, at::ScalarType type) {
  return is_given(tensor) ? OptionalTensor(tensor->to(type)) : std::nullopt;
}

void compute_nothing(const OptionalTensor& h0, const OptionalTensor& c0, const Forward& out) {
  const auto set = [](const at::Tensor& to, const OptionalTensor& from) {
    is_given(from) ? to.copy_(*from) : to.zero_();
  };
  set(std::get<1>(out), h0);
  set(std::get<2>(out), c0);
}

void compute_no_gradients(const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                          const c10::List<bool>& needs, const std::vector<at::Tensor>& grads) {
  for (const at::Tensor& grad : grads) grad.zero_();
  if (needs.get(1) && is_given(grad_h_n)) grads[1].copy_(*grad_h_n);
  if (needs.get(2) && is_given(grad_c_n)) grads[2].copy_(*grad_c_n);
}

Forward allocate(const LayerCall& call, const at::Tensor& x) {
  const LstmProblem& p = call.problem;
  const auto options = x.options();
  const auto state = options.dtype(state_type(x.scalar_type()));
  // Of c that is not kept nothing is written: small pages of it take no memory.
  const bool whole = p.keep_every == 0;
  const std::vector<int64_t> c_shape{p.directions, call.saved_rows, p.hidden_size};
  return {pooled_tensor(output_shape(p, x), options),
          pooled_tensor({p.directions, p.batch, p.output_size()}, options),
          pooled_tensor({p.directions, p.batch, p.hidden_size}, options),
          p.save && whole
              ? pooled_tensor({p.directions, call.saved_rows, 4 * p.hidden_size}, options)
              : pooled_tensor({0}, options),
          !p.save ? pooled_tensor({0}, state)
          : whole ? pooled_tensor(c_shape, state)
                  : at::empty(c_shape, state)};
}

void compute(const LayerCall& call, const Arguments& arguments, const Forward& out) {
  const Dense t = make_dense(arguments);
  with_type(arguments.x.scalar_type(),
            [&](auto tag) { run_forward<decltype(tag)>(call, t, arguments.reverse, out); });
}

std::vector<at::Tensor> allocate_gradients(const LayerCall& call, const at::Tensor& x,
                                           at::TensorList weights, const c10::List<bool>& needs) {
  const LstmProblem& p = call.problem;
  const auto options = x.options();
  std::vector<at::Tensor> grads;
  grads.reserve(needs.size());
  auto add = [&](at::IntArrayRef shape) {
    const bool needed = needs.get(grads.size());
    grads.push_back(pooled_tensor(needed ? shape : at::IntArrayRef({0}), options));
  };
  add(x.sizes());
  add({p.directions, p.batch, p.output_size()});
  add({p.directions, p.batch, p.hidden_size});
  for (const at::Tensor& w : weights) add(w.sizes());
  return grads;
}

void compute_gradients(const LayerCall& call, const Arguments& arguments, const Saved& saved,
                       const std::vector<at::Tensor>& grads) {
  const Dense t = make_dense(arguments);
  with_type(arguments.x.scalar_type(), [&](auto tag) {
    run_backward<decltype(tag)>(call, t, saved, arguments.reverse, grads);
  });
}

namespace {

// Where backward may have to see that the output has changed: see csrc/autograd.cpp.
Forward counted_from_one(Forward out, bool save) {
  if (save) std::get<0>(out).unsafeGetTensorImpl()->bump_version();
  return out;
}

Forward lstm_layer(const at::Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
                   const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse,
                   bool save) {
  const LayerCall call = read_call(x, batch_sizes, h0, c0, weights, reverse, save, true);
  const at::ScalarType type = x.scalar_type();
  if (!has_kernels(type)) {
    const at::ScalarType wide = at::kFloat;
    const ExactProducts exact;
    Forward out = lstm_layer(x.to(wide), batch_sizes, converted(h0, wide), converted(c0, wide),
                             converted(weights, wide), reverse, save);
    return counted_from_one(
        {std::get<0>(out).to(type), std::get<1>(out).to(type), std::get<2>(out).to(type),
         std::get<3>(out).to(type), std::get<4>(out)},
        save);
  }
  Forward out = allocate(call, x);
  if (call.problem.rows == 0) {
    compute_nothing(h0, c0, out);
  } else {
    compute(call, {x, h0, c0, weights, reverse}, out);
  }
  return counted_from_one(std::move(out), save);
}

// With kGatesToo the gradients of the pre-activations [D, N, 4H] come behind the others.
template <bool kGatesToo>
std::vector<at::Tensor> lstm_layer_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const at::Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse, const at::Tensor& y,
    const at::Tensor& gates, const at::Tensor& c, c10::List<bool> needs) {
  const LayerCall call = read_call(x, batch_sizes, h0, c0, weights, reverse, true, true);
  check_saved(call, grad_y, grad_h_n, grad_c_n, x, y, gates, c, needs, weights.size());
  const at::ScalarType type = x.scalar_type();
  if (!has_kernels(type)) {
    const at::ScalarType wide = at::kFloat;
    const ExactProducts exact;
    std::vector<at::Tensor> grads = lstm_layer_backward<kGatesToo>(
        converted(grad_y, wide), converted(grad_h_n, wide), converted(grad_c_n, wide), x.to(wide),
        batch_sizes, converted(h0, wide), converted(c0, wide), converted(weights, wide), reverse,
        y.to(wide), gates.to(wide), c, needs);
    return converted(grads, type);
  }
  std::vector<at::Tensor> grads = allocate_gradients(call, x, weights, needs);
  if (kGatesToo) {
    const LstmProblem& p = call.problem;
    grads.push_back(pooled_tensor({p.directions, p.rows, 4 * p.hidden_size}, x.options()));
  }
  if (call.problem.rows == 0) {
    compute_no_gradients(grad_h_n, grad_c_n, needs, grads);
    return grads;
  }
  compute_gradients(call, {x, h0, c0, weights, reverse},
                    {dense(grad_y), dense(grad_h_n), dense(grad_c_n), at::Tensor(), y.contiguous(),
                     gates.contiguous(), c.contiguous()},
                    grads);
  return grads;
}

}  // namespace
}  // namespace fused_lstm::cpu

TORCH_LIBRARY_IMPL(fused_lstm, CPU, m) {
  m.impl("lstm_layer", TORCH_FN(fused_lstm::cpu::lstm_layer));
  m.impl("lstm_layer_backward", TORCH_FN(fused_lstm::cpu::lstm_layer_backward<false>));
  m.impl("_lstm_layer_backward_gates", TORCH_FN(fused_lstm::cpu::lstm_layer_backward<true>));
}
