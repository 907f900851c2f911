#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/DeviceGuard.h>

#include "cuda/layer/layer.h"
#include "cuda/layer/loop.h"
#include "cuda/layer/ran.h"

namespace fused_lstm::cuda {

namespace {

// W_ih x of all steps, into the memory where the gates will be.
void project_input(const Layer& layer, const ForwardTensors& tensors) {
  const LstmProblem& p = layer.problem;
  const int64_t inputs = layer.x.size(1), outputs = 4 * p.hidden_size;
  for (int d = 0; d < p.directions; ++d) {
    layer.multiply({direction_data(tensors.gates, d), p.rows, outputs, outputs},
                   {{layer.x.data_ptr(), p.rows, inputs, inputs}},
                   transposed({layer.directions[d].w_ih.data_ptr(), outputs, inputs, inputs}),
                   false);
  }
}

ForwardParams forward_params(const Layer& layer, const ForwardTensors& tensors, const Loop& loop,
                             const at::Tensor& exchange) {
  const LstmProblem& p = layer.problem;
  ForwardParams params = {};
  params.steps = layer.device_steps();
  params.hidden = params.w_hh_stride = params.h0_stride = p.hidden_size;
  params.gates_x_stride = params.gates_stride = 4 * p.hidden_size;
  params.y_stride = tensors.y.size(1);
  params.slices = loop.slices;
  params.trace = trace();
  for (int d = 0; d < p.directions; ++d) {
    ForwardDirection& direction = params.direction[d];
    direction.gates_x = direction.gates = direction_data(tensors.gates, d);
    direction.b_ih = data(layer.directions[d].b_ih);
    direction.b_hh = data(layer.directions[d].b_hh);
    direction.w_hh = layer.directions[d].w_hh.data_ptr();
    direction.h0 = direction_data(layer.h0, d);
    direction.c0 = direction_data(layer.c0, d);
    direction.y = address(tensors.y, d * p.hidden_size);
    direction.h_n = direction_data(tensors.h_n, d);
    direction.c_n = direction_data(tensors.c_n, d);
    direction.c = direction_data(tensors.c, d);
    direction.exchange = direction_data(exchange, d);
    direction.reverse = layer.directions[d].reverse;
  }
  return params;
}

// Plans A to C; "" or why the device refuses the launch.
std::string forward_loop(const Layer& layer, ForwardTensors& tensors, const Loop& loop) {
  const LstmProblem& p = layer.problem;
  const auto options = layer.x.options();
  tensors.h_n = at::empty({p.directions, p.batch, p.hidden_size}, options);
  tensors.c_n = at::empty({p.directions, p.batch, p.hidden_size}, options);
  const at::Tensor exchange = make_exchange(layer, loop, /*operands=*/1);
  return launch_loop_forward(loop, layer.arithmetic, forward_params(layer, tensors, loop, exchange),
                             p.directions, p.save, layer.stream);
}

}  // namespace

at::Tensor make_exchange(const Layer& layer, const Loop& loop, int operands) {
  if (loop.algorithm != Algorithm::grid) return {};
  const LstmProblem& p = layer.problem;
  const int64_t bytes =
      exchange_bytes(p.batch, p.hidden_size, element_size(layer.arithmetic), operands);
  return at::full({p.directions, bytes}, 255, layer.x.options().dtype(at::kByte));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> lstm_layer(
    const at::Tensor& x, const OptionalTensor& batch_sizes, const OptionalTensor& h0,
    const OptionalTensor& c0, at::TensorList weights, c10::List<bool> reverse, bool save) {
  const c10::DeviceGuard guard(x.device());
  const Layer layer = read_layer(read_call(x, batch_sizes, h0, c0, weights, reverse, save), x, h0,
                                 c0, weights, reverse);
  const LstmProblem& p = layer.problem;
  const auto options = layer.x.options();

  ForwardTensors tensors;
  tensors.y = at::empty({p.rows, p.directions * layer.output_size()}, options);
  tensors.gates = at::empty({p.directions, p.rows, 4 * p.hidden_size}, options);
  if (save) {
    tensors.c = at::empty({p.directions, p.rows, p.hidden_size}, options.dtype(layer.acc_type));
  }
  project_input(layer, tensors);
  const Pass pass = plan_layer(layer).forward;
  run_pass(
      pass, layer.arithmetic, /*backward=*/false,
      [&] { return forward_loop(layer, tensors, pass.loop); },
      [&] { forward_steps(layer, tensors); });

  if (!save) {
    tensors.gates = at::empty({0}, options);
    tensors.c = at::empty({0}, options.dtype(layer.acc_type));
  }
  return {tensors.y.view(layer.output_shape), tensors.h_n, tensors.c_n, tensors.gates, tensors.c};
}

}  // namespace fused_lstm::cuda
