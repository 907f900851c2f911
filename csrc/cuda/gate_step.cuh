// Plan D: the gates of one time step, forward and backward, after a GEMM has made the recurrent
// product. Elementwise, one thread per (row, unit), so every shape is covered, with projection or
// without; both directions of a layer go in one launch, as grid.y.
//
// Launch: grid (gate_step_blocks(rows, hidden), directions), kGateStepThreads threads, no shared
// memory. A thread reads all it needs before it writes, so outputs may share memory with inputs
// where params.h says so.
#pragma once

#include "math.cuh"

namespace fused_lstm {
namespace cuda {

constexpr int kGateStepThreads = 256;
// rows: live rows of the direction that has the most.
constexpr int64_t gate_step_blocks(int64_t rows, int64_t hidden) {
  return ceil_div(rows * hidden, kGateStepThreads);
}

template <class Math, bool kSave>
__global__ void __launch_bounds__(kGateStepThreads)
    gate_step_forward(const __grid_constant__ GateForwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  const GateForwardDirection& d = p.direction[hw::block_y()];
  const int64_t index = hw::block_x() * kGateStepThreads + hw::thread();
  if (index >= d.rows * p.hidden) return;
  const int64_t row = index / p.hidden;
  const int64_t unit = index - row * p.hidden;

  Gates<Acc> z =
      load_gates<Acc>(static_cast<const T*>(d.gates_x) + row * p.gates_x_stride + unit, p.hidden);
  if (d.gates_h) {
    const Gates<Acc> zh =
        load_gates<Acc>(static_cast<const T*>(d.gates_h) + row * p.gates_h_stride + unit, p.hidden);
    z = {z.i + zh.i, z.f + zh.f, z.g + zh.g, z.o + zh.o};
  }
  const Gates<Acc> a = activate(z.i, z.f, z.g, z.o);

  Acc* carry = static_cast<Acc*>(d.c_carry) + index;
  const Acc c = cell_state(a, *carry);
  const T h = From<T>::acc(hidden_state(a, tanh_of(c)));
  *carry = c;
  static_cast<T*>(d.h)[row * p.h_stride + unit] = h;
  if (d.h_carry) static_cast<T*>(d.h_carry)[index] = h;
  if (kSave) {
    store_gates(static_cast<T*>(d.gates) + row * p.gates_stride + unit, p.hidden, a);
    static_cast<Acc*>(d.c)[index] = c;
  }
}

template <class Math>
__global__ void __launch_bounds__(kGateStepThreads)
    gate_step_backward(const __grid_constant__ GateBackwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  const GateBackwardDirection& d = p.direction[hw::block_y()];
  const int64_t index = hw::block_x() * kGateStepThreads + hw::thread();
  if (index >= d.rows * p.hidden) return;
  const int64_t row = index / p.hidden;
  const int64_t unit = index - row * p.hidden;

  const Gates<Acc> a =
      load_gates<Acc>(static_cast<const T*>(d.gates) + row * p.gates_stride + unit, p.hidden);
  const Acc tanh_c = tanh_of(static_cast<const Acc*>(d.c)[index]);
  const Acc c_prev = row < d.prev_rows
                         ? static_cast<const Acc*>(d.c_prev)[index]
                         : load_or_zero<Acc>(static_cast<const T*>(d.c0), row, p.c0_stride, unit);
  const Acc dh = load_or_zero<Acc>(static_cast<const T*>(d.dh_a), row, p.dh_a_stride, unit) +
                 load_or_zero<Acc>(static_cast<const T*>(d.dh_b), row, p.dh_b_stride, unit);

  Acc* carry = static_cast<Acc*>(d.dc_carry) + index;
  Acc dc = *carry;
  const Gates<Acc> dz = gate_gradients(a, c_prev, tanh_c, dh, dc);
  *carry = dc;
  store_gates(static_cast<T*>(d.dgates) + row * p.dgates_stride + unit, p.hidden, dz);
}

}  // namespace cuda
}  // namespace fused_lstm
