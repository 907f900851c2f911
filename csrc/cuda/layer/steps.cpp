// Plan D: a GEMM and a gate kernel per step, for every shape; with projection one GEMM more.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "cuda/layer/layer.h"

namespace fused_lstm::cuda {

namespace {

// [D, B, size] of what a sequence begins with, converted; zeros where it is not given.
at::Tensor initial_state(const Layer& layer, const at::Tensor& given, int64_t size,
                         at::ScalarType type) {
  const LstmProblem& p = layer.problem;
  const auto options = layer.x.options().dtype(type);
  if (!given.defined()) return at::zeros({p.directions, p.batch, size}, options);
  return given.to(type, /*non_blocking=*/false, /*copy=*/true);
}

Matrix weight(const at::Tensor& w) { return {w.data_ptr(), w.size(0), w.size(1), w.size(1)}; }

Matrix state_rows(const at::Tensor& state, int d, int64_t rows) {
  return rows_of(direction_data(state, d), state, 0, rows, state.size(2), state.size(2));
}

// Live rows of the direction that has the most at step number k.
int64_t most_rows(const Layer& layer, int64_t k) {
  int64_t rows = 0;
  for (int d = 0; d < layer.problem.directions; ++d) {
    rows = std::max(rows, layer.steps.size(layer.step(d, k)));
  }
  return rows;
}

// ---- forward ----

struct ForwardState {
  at::Tensor h;      // [D, B, P]: carried to the next step; h_n in the end
  at::Tensor c;      // [D, B, H] acc_type
  at::Tensor h_raw;  // [D, B, H]: h before the projection; undefined without
};

GateForwardDirection forward_direction(const Layer& layer, const ForwardTensors& tensors,
                                       const ForwardState& state, int d, int64_t t) {
  const int64_t hidden = layer.problem.hidden_size, first = layer.steps.offset(t);
  const int64_t y_stride = tensors.y.size(1);
  GateForwardDirection direction = {};
  direction.rows = layer.steps.size(t);
  char* gates = direction_data(tensors.gates, d);
  direction.gates_x = rows_of(gates, tensors.gates, first, 0, 0, 4 * hidden).data;
  direction.gates = const_cast<void*>(direction.gates_x);
  direction.b_ih = data(layer.directions[d].b_ih);
  direction.b_hh = data(layer.directions[d].b_hh);
  direction.c_carry = direction_data(state.c, d);
  if (tensors.c.defined()) {
    direction.c = rows_of(direction_data(tensors.c, d), tensors.c, first, 0, 0, hidden).data;
  }
  if (layer.projected()) {
    direction.h = direction_data(state.h_raw, d);
  } else {
    direction.h = address(tensors.y, first * y_stride + d * hidden);
    direction.h_carry = direction_data(state.h, d);
  }
  return direction;
}

// With a projection of dense input y itself is what a step reads of the step before; packed, the
// rows of y end and begin with their sequences, and a copy is carried.
bool carried_in_y(const Layer& layer) { return layer.projected() && !layer.problem.packed; }

Matrix y_rows(const Layer& layer, const ForwardTensors& tensors, int d, int64_t t) {
  const int64_t size = layer.output_size(), stride = tensors.y.size(1);
  return {address(tensors.y, layer.steps.offset(t) * stride + d * size), layer.steps.size(t), size,
          stride};
}

// The h that step number k of direction d starts from.
Matrix h_before(const Layer& layer, const ForwardTensors& tensors, const ForwardState& state, int d,
                int64_t k) {
  if (k > 0 && carried_in_y(layer)) return y_rows(layer, tensors, d, layer.step(d, k - 1));
  return state_rows(state.h, d, layer.steps.size(layer.step(d, k)));
}

// h_raw -> y, and what is carried.
void project(const Layer& layer, const ForwardTensors& tensors, const ForwardState& state, int d,
             int64_t t) {
  const Matrix y = y_rows(layer, tensors, d, t);
  layer.multiply(y, {state_rows(state.h_raw, d, y.rows)},
                 transposed(weight(layer.directions[d].w_hr)), false);
  if (carried_in_y(layer)) return;
  state.h.select(0, d)
      .narrow(0, 0, y.rows)
      .copy_(tensors.y.narrow(0, layer.steps.offset(t), y.rows).narrow(1, d * y.cols, y.cols));
}

}  // namespace

void forward_steps(const Layer& layer, ForwardTensors& tensors) {
  const LstmProblem& p = layer.problem;
  const int64_t hidden = p.hidden_size;
  ForwardState state;
  state.h = initial_state(layer, layer.h0, layer.output_size(), layer.x.scalar_type());
  state.c = initial_state(layer, layer.c0, hidden, layer.acc_type);
  if (layer.projected()) {
    state.h_raw = at::empty({p.directions, p.batch, hidden}, layer.x.options());
  }

  GateForwardParams params = {};
  params.hidden = hidden;
  params.gates_x_stride = params.gates_stride = 4 * hidden;
  params.h_stride = layer.projected() ? hidden : tensors.y.size(1);
  for (int64_t k = 0; k < p.steps; ++k) {
    for (int d = 0; d < p.directions; ++d) {
      const int64_t t = layer.step(d, k), rows = layer.steps.size(t);
      params.direction[d] = forward_direction(layer, tensors, state, d, t);
      if (k == 0 && !layer.h0.defined()) continue;
      layer.multiply({params.direction[d].gates, rows, 4 * hidden, 4 * hidden},
                     {h_before(layer, tensors, state, d, k)},
                     transposed(weight(layer.directions[d].w_hh)), true);
    }
    if (most_rows(layer, k) == 0) continue;
    launch_gates_forward(layer.arithmetic, params, p.directions, p.save, layer.stream);
    for (int d = 0; d < p.directions && layer.projected(); ++d) {
      project(layer, tensors, state, d, layer.step(d, k));
    }
  }
  for (int d = 0; d < p.directions && p.steps > 0 && carried_in_y(layer); ++d) {
    const int64_t last = layer.steps.offset(layer.step(d, p.steps - 1));
    const int64_t size = layer.output_size();
    state.h.select(0, d).copy_(tensors.y.narrow(0, last, p.batch).narrow(1, d * size, size));
  }
  tensors.h_n = state.h;
  tensors.c_n = state.c.to(layer.x.scalar_type());
}

// ---- backward ----

namespace {

struct BackwardState {
  at::Tensor dh;      // [D, B, P]: carried to the step before; dh0 in the end
  at::Tensor dc;      // [D, B, H] acc_type
  at::Tensor dh_raw;  // [D, B, H]: gradient of h before the projection; undefined without
};

// The gradient of the step's projected h, complete, and from it that of the h before it.
void project_backward(const Layer& layer, BackwardTensors& tensors, const BackwardState& state,
                      int d, int64_t t) {
  const int64_t rows = layer.steps.size(t), first = layer.steps.offset(t);
  const int64_t size = layer.output_size();
  tensors.dproj.select(0, d).narrow(0, first, rows).add_(state.dh.select(0, d).narrow(0, 0, rows));
  layer.multiply(
      state_rows(state.dh_raw, d, rows),
      {rows_of(direction_data(tensors.dproj, d), tensors.dproj, first, rows, size, size)},
      {weight(layer.directions[d].w_hr)}, false);
}

GateBackwardDirection backward_direction(const Layer& layer, const BackwardTensors& tensors,
                                         const BackwardState& state, int d, int64_t k) {
  const int64_t hidden = layer.problem.hidden_size;
  const int64_t t = layer.step(d, k), first = layer.steps.offset(t);
  GateBackwardDirection direction = {};
  direction.rows = layer.steps.size(t);
  if (layer.projected()) {
    direction.dh_a = direction_data(state.dh_raw, d);
  } else {
    const int64_t stride = layer.problem.directions * hidden;
    if (tensors.grad_y.defined()) {
      direction.dh_a = address(tensors.grad_y, first * stride + d * hidden);
    }
    direction.dh_b = direction_data(state.dh, d);
  }
  direction.gates =
      rows_of(direction_data(tensors.gates, d), tensors.gates, first, 0, 0, 4 * hidden).data;
  direction.dgates =
      rows_of(direction_data(tensors.dgates, d), tensors.dgates, first, 0, 0, 4 * hidden).data;
  char* c = direction_data(tensors.c, d);
  direction.c = rows_of(c, tensors.c, first, 0, 0, hidden).data;
  if (k > 0) {
    const int64_t t_prev = layer.step(d, k - 1);
    direction.c_prev = rows_of(c, tensors.c, layer.steps.offset(t_prev), 0, 0, hidden).data;
    direction.prev_rows = std::min(direction.rows, layer.steps.size(t_prev));
  }
  direction.c0 = direction_data(layer.c0, d);
  direction.dc_carry = direction_data(state.dc, d);
  return direction;
}

}  // namespace

void backward_steps(const Layer& layer, BackwardTensors& tensors) {
  const LstmProblem& p = layer.problem;
  const int64_t hidden = p.hidden_size;
  BackwardState state;
  state.dh = initial_state(layer, tensors.grad_h_n, layer.output_size(), layer.x.scalar_type());
  state.dc = initial_state(layer, tensors.grad_c_n, hidden, layer.acc_type);
  if (layer.projected()) {
    state.dh_raw = at::empty({p.directions, p.batch, hidden}, layer.x.options());
  }

  GateBackwardParams params = {};
  params.hidden = params.dh_b_stride = params.c0_stride = hidden;
  params.dh_a_stride = layer.projected() ? hidden : p.directions * hidden;
  params.gates_stride = params.dgates_stride = 4 * hidden;
  for (int64_t k = p.steps - 1; k >= 0; --k) {
    for (int d = 0; d < p.directions; ++d) {
      if (layer.projected()) project_backward(layer, tensors, state, d, layer.step(d, k));
      params.direction[d] = backward_direction(layer, tensors, state, d, k);
    }
    if (most_rows(layer, k) == 0) continue;
    launch_gates_backward(layer.arithmetic, params, p.directions, layer.stream);
    for (int d = 0; d < p.directions; ++d) {
      const int64_t rows = params.direction[d].rows;
      layer.multiply(state_rows(state.dh, d, rows),
                     {{params.direction[d].dgates, rows, 4 * hidden, 4 * hidden}},
                     {weight(layer.directions[d].w_hh)}, false);
    }
  }
  tensors.dh0 = state.dh;
  tensors.dc0 = state.dc.to(layer.x.scalar_type());
}

}  // namespace fused_lstm::cuda
