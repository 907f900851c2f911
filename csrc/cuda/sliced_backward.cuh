// Plans B and C, backward: the gradients of the pre-activation gates, which are all that the large
// products after the loop need, and the gradients of the initial state. See sliced.cuh for who does
// what, exchange.cuh for how the gate gradients travel.
#pragma once

#include "sliced.cuh"

namespace fused_lstm {
namespace cuda {

template <class Math, template <class, int> class Exchange, int kUnitTiles, int kRegTiles,
          int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sliced_backward(const __grid_constant__ BackwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  using DGates = Exchange<Math, kGates>;
  const BackwardDirection& d = p.direction[hw::block_y()];
  const SlicedBlock<Math, kUnitTiles, kRegTiles, true, DGates::kCluster> block(
      p.slices, p.steps, static_cast<const T*>(d.w_hh), p.w_hh_stride, p.hidden);
  DGates exchange(d.exchange, d.flags, block.shared_operand, p.slices, block.slice, p.hidden,
                  p.steps.batch, block.weights.first, block.weights.count);
  const bool reverse = d.reverse != 0;
  const int64_t unit = block.unit;

  // Kept per cell: the gradients of h (0) and c (1) that later steps have left.
  for (int local = 0; local < block.row_tiles; ++local) {
    const int64_t row = block.row0(local) + block.cell_row;
    if (!block.unit_valid || row >= p.steps.batch) continue;
    block.state(local, 0) =
        load_or_zero<Acc>(static_cast<const T*>(d.grad_h_n), row, p.grad_state_stride, unit);
    block.state(local, 1) =
        load_or_zero<Acc>(static_cast<const T*>(d.grad_c_n), row, p.grad_state_stride, unit);
  }

  // Step `step` multiplies the gate gradients of step - 1 (epoch step), which are there for the
  // rows that were live then; the step after a row tile's last one does nothing else.
  const int64_t longest = block.row_tiles > 0 ? block.steps(0) : 0;
  for (int64_t step = 0; step <= longest; ++step) {
    for (int local = 0; local < block.row_tiles && step <= block.steps(local); ++local) {
      const int64_t count = block.steps(local);
      const int64_t t = reverse ? step : count - 1 - step;
      const int64_t before = reverse ? step - 1 : count - step;  // the step walked before this one
      const int64_t row = block.row0(local) + block.cell_row;
      const bool valid = block.unit_valid && row < p.steps.batch;
      const int64_t length = valid ? block.length(local) : 0;
      const bool live = step < count && t < length;
      const int64_t n = live ? p.steps.offset(t) + row : 0;
      // Loaded before the wait: these do not depend on the other blocks.
      SavedCell<Acc> saved{};
      if (live) saved = load_saved<T, Acc>(p, d, t, row, unit, length);

      if (step > 0) {
        exchange.wait(block.row_tile(local), step);
        block.multiply(exchange, exchange.operand(block.row_tile(local), local, step));
        if (valid && before < length) block.state(local, 0) = block.sum(0);
      }
      if (step == count) {
        hw::sync_block();  // the sums are read before the next row tile overwrites them
        continue;
      }
      Gates<T> dz{};
      if (live) {
        Acc dc = block.state(local, 1);
        dz = gates_of<T>(gate_gradients(saved.a, saved.c_prev, tanh_of(saved.c),
                                        block.state(local, 0) + saved.grad_y, dc));
        block.state(local, 1) = dc;
      }
      if (valid) {
        char* operand = exchange.operand(block.row_tile(local), local, step + 1);
        put_gates(operand_at<Math>(operand, block.cell_row, unit),
                  exchange.gate_bytes() / static_cast<int64_t>(sizeof(T)), dz,
                  [&](T* to, T value) { exchange.put(to, Math::round_operand(value)); });
      }
      exchange.publish(block.row_tile(local), local, step + 1);
      // Stored last: publishing waits for the stores before it.
      if (live) {
        put_gates(static_cast<T*>(d.dgates) + n * p.dgates_stride + unit, p.hidden, dz,
                  [](T* to, T value) { *to = value; });
      }
    }
  }
  exchange.finish();

  for (int local = 0; local < block.row_tiles; ++local) {
    const int64_t row = block.row0(local) + block.cell_row;
    if (!block.unit_valid || row >= p.steps.batch) continue;
    const int64_t at = row * p.hidden + unit;
    if (d.dh0) static_cast<T*>(d.dh0)[at] = From<T>::acc(block.state(local, 0));
    if (d.dc0) static_cast<T*>(d.dc0)[at] = From<T>::acc(block.state(local, 1));
  }
}

}  // namespace cuda
}  // namespace fused_lstm
