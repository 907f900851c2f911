// Plans B and C, backward: the gradients of the pre-activation gates, which are all that the large
// products after the loop need, and the gradients of the initial state. See sliced.cuh for who does
// what, exchange.cuh for how the gate gradients travel.
#pragma once

#include "sliced.cuh"

namespace fused_lstm {
namespace cuda {

template <class Math, template <class, int> class Exchange, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    sliced_backward(const __grid_constant__ BackwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  using DGates = Exchange<Math, kGates>;
  using Block = SlicedBlock<Math, Shape, DGates, true>;
  constexpr int kOwn = Block::kOwn;
  const BackwardDirection& d = p.direction[hw::block_y()];
  const Block block(p.slices, p.steps, static_cast<const T*>(d.w_hh), p.w_hh_stride, p.hidden,
                    p.trace);
  const DGates exchange(d.exchange, block.shared_operand, p.slices, p.hidden, p.steps.batch);
  typename Block::Operands operands;
  const int64_t unit = block.unit;
  const auto put_dgates = [&](int local, int i, int64_t epoch, const Gates<T>& dz) {
    char* operand = exchange.operand(block.row_tile(local), local, epoch);
    const T of_gate[kGates] = {dz.i, dz.f, dz.g, dz.o};
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      put<Math>(exchange, operand + gate * exchange.gate_bytes(), block.cell_row(i), unit,
                Math::round_operand(of_gate[gate]));
    }
  };

  // Kept per cell: the gradients of h (0) and c (1) that later steps have left.
  for (int local = 0; local < block.row_tiles; ++local) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!block.valid(local, i)) continue;
      const int64_t row = block.row(local, i);
      block.state(local, i, 0) =
          load_or_zero<Acc>(static_cast<const T*>(d.grad_h_n), row, p.grad_state_stride, unit);
      block.state(local, i, 1) =
          load_or_zero<Acc>(static_cast<const T*>(d.grad_c_n), row, p.grad_state_stride, unit);
    }
  }

  // Step `step` multiplies the gate gradients of step - 1 (epoch step), which are there for the
  // rows that were live then; the step after a row tile's last one does nothing else.
  Turn turn{0, 0, false};
  while (block.has(turn, 1)) {
    const int local = turn.local;
    const int64_t step = turn.step, count = block.steps(local);
    const int64_t t = d.reverse ? step : count - 1 - step;
    const int64_t before = d.reverse ? step - 1 : count - step;  // the step walked before this
    bool live[kOwn];
    // Loaded before the product: these do not depend on the other blocks.
    SavedCell<Acc> saved[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      live[i] = step < count && block.valid(local, i) && t < block.length(local, i);
      if (!live[i]) continue;
      saved[i] = load_saved<T, Acc>(p, d, t, block.row(local, i), unit, block.length(local, i));
    }

    if (step > 0) {
      block.multiply(operands, exchange, turn);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (block.valid(local, i) && before < block.length(local, i)) {
          block.state(local, i, 0) = block.sums(turn, i).at[0];
        }
      }
    }
    Gates<T> dz[kOwn] = {};
#pragma unroll
    for (int i = 0; i < kOwn && block.has_cells && step < count; ++i) {
      if (live[i]) {
        Acc dc = block.state(local, i, 1);
        dz[i] = gates_of<T>(gate_gradients(saved[i].a, saved[i].c_prev, Math::tanh(saved[i].c),
                                           block.state(local, i, 0) + saved[i].grad_y, dc));
        block.state(local, i, 1) = dc;
      }
      put_dgates(local, i, step + 1, dz[i]);
    }
    stamp(p.trace, step, kSummed);
    if (step > 0 && step < count) block.retire(exchange, turn);
    stamp(p.trace, step, kStored);

    const Turn next = block.after(turn, 1);
    if (next.step > 0 && block.has(next, 1)) block.ask(operands, exchange, next);
    // Stored last: nobody waits for these.
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!live[i]) continue;
      const int64_t n = p.steps.offset(t) + block.row(local, i);
      put_gates(static_cast<T*>(d.dgates) + n * p.dgates_stride + unit, p.hidden, dz[i],
                [](T* to, T value) { *to = value; });
    }
    stamp(p.trace, step, kWritten);
    turn = next;
  }
  exchange.finish();

  for (int local = 0; local < block.row_tiles; ++local) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!block.valid(local, i)) continue;
      const int64_t at = block.row(local, i) * p.hidden + unit;
      if (d.dh0) static_cast<T*>(d.dh0)[at] = From<T>::acc(block.state(local, i, 0));
      if (d.dc0) static_cast<T*>(d.dc0)[at] = From<T>::acc(block.state(local, i, 1));
    }
  }
}

}  // namespace cuda
}  // namespace fused_lstm
