#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>

#include "cuda/layer/layer.h"
#include "cuda/layer/loop.h"
#include "cuda/layer/ran.h"

namespace fused_lstm::cuda {

namespace {

// ---- the loop ----

BackwardParams backward_params(const Layer& layer, const BackwardTensors& tensors, const Loop& loop,
                               const at::Tensor& exchange) {
  const LstmProblem& p = layer.problem;
  BackwardParams params = {};
  params.steps = layer.device_steps();
  params.hidden = params.w_hh_stride = params.c0_stride = params.grad_state_stride = p.hidden_size;
  params.gates_stride = params.dgates_stride = 4 * p.hidden_size;
  params.grad_y_stride = p.directions * p.hidden_size;
  params.slices = loop.slices;
  params.trace = trace();
  for (int d = 0; d < p.directions; ++d) {
    BackwardDirection& direction = params.direction[d];
    direction.w_hh = layer.directions[d].w_hh.data_ptr();
    direction.gates = direction_data(tensors.gates, d);
    direction.c = direction_data(tensors.c, d);
    direction.c0 = direction_data(layer.c0, d);
    if (tensors.grad_y.defined()) direction.grad_y = address(tensors.grad_y, d * p.hidden_size);
    direction.grad_h_n = direction_data(tensors.grad_h_n, d);
    direction.grad_c_n = direction_data(tensors.grad_c_n, d);
    direction.dgates = direction_data(tensors.dgates, d);
    direction.dh0 = direction_data(tensors.dh0, d);
    direction.dc0 = direction_data(tensors.dc0, d);
    direction.exchange = direction_data(exchange, d);
    direction.reverse = layer.directions[d].reverse;
  }
  return params;
}

// Plans A to C; "" or why the device refuses the launch.
std::string backward_loop(const Layer& layer, BackwardTensors& tensors, const Loop& loop) {
  const LstmProblem& p = layer.problem;
  tensors.dh0 = at::empty({p.directions, p.batch, p.hidden_size}, layer.x.options());
  tensors.dc0 = at::empty({p.directions, p.batch, p.hidden_size}, layer.x.options());
  const at::Tensor exchange = make_exchange(layer, loop, /*operands=*/4);
  return launch_loop_backward(loop, layer.arithmetic,
                              backward_params(layer, tensors, loop, exchange), p.directions,
                              layer.stream);
}

BackwardTensors run_backward_loop(const Layer& layer, const OptionalTensor& grad_y,
                                  const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
                                  const at::Tensor& gates, const at::Tensor& c) {
  const LstmProblem& p = layer.problem;
  const int64_t size = layer.output_size();
  BackwardTensors tensors;
  tensors.gates = gates.contiguous();
  tensors.c = c.contiguous();
  if (is_given(grad_y)) {
    tensors.grad_y = grad_y->reshape({p.rows, p.directions * size}).contiguous();
  }
  if (is_given(grad_h_n)) tensors.grad_h_n = grad_h_n->contiguous();
  if (is_given(grad_c_n)) tensors.grad_c_n = grad_c_n->contiguous();
  tensors.dgates = at::empty({p.directions, p.rows, 4 * p.hidden_size}, layer.x.options());
  if (layer.projected()) {
    tensors.dproj = at::zeros({p.directions, p.rows, size}, layer.x.options());
    if (tensors.grad_y.defined()) {
      tensors.dproj.copy_(tensors.grad_y.view({p.rows, p.directions, size}).transpose(0, 1));
    }
  }
  const Pass pass = plan_layer(layer).backward;
  run_pass(
      pass, layer.arithmetic, /*backward=*/true,
      [&] { return backward_loop(layer, tensors, pass.loop); },
      [&] { backward_steps(layer, tensors); });
  return tensors;
}

// ---- the products over all steps ----

Matrix matrix(const at::Tensor& t) { return {t.data_ptr(), t.size(0), t.size(1), t.size(1)}; }

at::Tensor input_gradient(const Layer& layer, const at::Tensor& dgates) {
  at::Tensor dx = at::empty_like(layer.x);
  for (int d = 0; d < layer.problem.directions; ++d) {
    layer.multiply(matrix(dx), {matrix(dgates.select(0, d))}, {matrix(layer.directions[d].w_ih)},
                   d > 0);
  }
  return dx;
}

// dgates^T h_prev for dense input: h_prev is y, one step on, and h0.
void recurrent_gradient_dense(const Layer& layer, const at::Tensor& y, const at::Tensor& dgates,
                              int d, const Matrix& dw) {
  const LstmProblem& p = layer.problem;
  const int64_t size = layer.output_size(), later = p.rows - p.batch, stride = 4 * p.hidden_size;
  const bool reverse = layer.directions[d].reverse;
  const int64_t first = reverse ? 0 : p.batch;  // of the rows with a step before them
  layer.multiply(
      dw, transposed(rows_of(direction_data(dgates, d), dgates, first, later, stride, stride)),
      {rows_of(address(y, d * size), y, reverse ? p.batch : 0, later, size, y.size(1))}, false);
  if (!layer.h0.defined()) return;
  layer.multiply(dw,
                 transposed(rows_of(direction_data(dgates, d), dgates, reverse ? later : 0, p.batch,
                                    stride, stride)),
                 {rows_of(direction_data(layer.h0, d), layer.h0, 0, p.batch, size, size)}, true);
}

void recurrent_gradient_packed(const Layer& layer, const at::Tensor& y, const at::Tensor& dgates,
                               int d, const Matrix& dw) {
  const int64_t size = layer.output_size();
  const at::Tensor h_prev = at::empty({layer.problem.rows, size}, layer.x.options());
  PreviousRowsParams params = {};
  params.steps = layer.device_steps();
  params.width = size;
  params.h_stride = y.size(1);
  params.h = address(y, d * size);
  params.h0 = direction_data(layer.h0, d);
  params.to = h_prev.data_ptr();
  params.reverse = layer.directions[d].reverse;
  launch_previous_rows(static_cast<int>(y.element_size()), params, layer.stream);
  layer.multiply(dw, transposed(matrix(dgates.select(0, d))), {matrix(h_prev)}, false);
}

at::Tensor recurrent_gradient(const Layer& layer, const at::Tensor& y, const at::Tensor& dgates,
                              int d) {
  if (layer.problem.rows == 0) return at::zeros_like(layer.directions[d].w_hh);
  at::Tensor dw = at::empty_like(layer.directions[d].w_hh);
  if (layer.problem.packed) {
    recurrent_gradient_packed(layer, y, dgates, d, matrix(dw));
  } else {
    recurrent_gradient_dense(layer, y, dgates, d, matrix(dw));
  }
  return dw;
}

at::Tensor projection_gradient(const Layer& layer, const BackwardTensors& tensors, int d) {
  const int64_t hidden = layer.problem.hidden_size;
  const at::Tensor o = tensors.gates.select(0, d).narrow(1, 3 * hidden, hidden);
  // h before the projection is rounded as it was in the forward pass.
  const at::Tensor h = at::mul(at::tanh(tensors.c.select(0, d)), o).to(layer.x.scalar_type());
  at::Tensor dw = at::empty_like(layer.directions[d].w_hr);
  layer.multiply(matrix(dw), transposed(matrix(tensors.dproj.select(0, d))), {matrix(h)}, false);
  return dw;
}

// Gradients of one direction's weights into result[first ...], where needed.
void weight_gradients(const Layer& layer, const BackwardTensors& tensors, const at::Tensor& y,
                      int d, const c10::List<bool>& needs, std::vector<at::Tensor>& result) {
  const int each = layer.weights_per_direction;
  const size_t first = 3 + static_cast<size_t>(d) * each;
  const at::Tensor dgates = tensors.dgates.select(0, d);
  if (needs[first]) {
    at::Tensor dw = at::empty_like(layer.directions[d].w_ih);
    layer.multiply(matrix(dw), transposed(matrix(dgates)), {matrix(layer.x)}, false);
    result[first] = dw;
  }
  if (needs[first + 1]) result[first + 1] = recurrent_gradient(layer, y, tensors.dgates, d);
  if (layer.problem.bias && (needs[first + 2] || needs[first + 3])) {
    const at::Tensor db = at::sum(dgates, {0});
    if (needs[first + 2]) result[first + 2] = db;
    // A copy: two parameters must not share one gradient.
    if (needs[first + 3]) result[first + 3] = needs[first + 2] ? db.clone() : db;
  }
  if (layer.projected() && needs[first + each - 1]) {
    result[first + each - 1] = projection_gradient(layer, tensors, d);
  }
}

}  // namespace

template <bool kGatesToo>
std::vector<at::Tensor> lstm_layer_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const at::Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse, const at::Tensor& y,
    const at::Tensor& gates, const at::Tensor& c, c10::List<bool> needs) {
  const c10::DeviceGuard guard(x.device());
  const LayerCall call = read_call(x, batch_sizes, h0, c0, weights, reverse, /*save=*/true);
  check_saved(call, grad_y, grad_h_n, grad_c_n, x, y, gates, c, needs, weights.size());
  const Layer layer = read_layer(call, x, h0, c0, weights, reverse);
  BackwardTensors tensors = run_backward_loop(layer, grad_y, grad_h_n, grad_c_n, gates, c);

  std::vector<at::Tensor> result(needs.size());
  if (needs[0]) result[0] = input_gradient(layer, tensors.dgates).view(x.sizes());
  if (needs[1]) result[1] = tensors.dh0;
  if (needs[2]) result[2] = tensors.dc0;
  const int64_t y_size = layer.problem.directions * layer.output_size();
  const at::Tensor y_rows = y.reshape({layer.problem.rows, y_size}).contiguous();
  for (int d = 0; d < layer.problem.directions; ++d) {
    weight_gradients(layer, tensors, y_rows, d, needs, result);
  }
  for (at::Tensor& gradient : result) {
    if (!gradient.defined()) gradient = at::empty({0}, x.options());
  }
  if (kGatesToo) result.push_back(tensors.dgates);
  return result;
}

#define FUSED_LSTM_INSTANTIATE(GATES_TOO)                                                     \
  template std::vector<at::Tensor> lstm_layer_backward<GATES_TOO>(                            \
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const at::Tensor&, \
      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, at::TensorList,    \
      c10::List<bool>, const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::List<bool>)
FUSED_LSTM_INSTANTIATE(false);
FUSED_LSTM_INSTANTIATE(true);

}  // namespace fused_lstm::cuda
