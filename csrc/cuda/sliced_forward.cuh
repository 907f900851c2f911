// Plans B and C, forward. See sliced.cuh for who does what, exchange.cuh for how h travels.
#pragma once

#include "sliced.cuh"

namespace fused_lstm {
namespace cuda {

template <class Math, template <class, int> class Exchange, class Shape, bool kSave>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    sliced_forward(const __grid_constant__ ForwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  using H = Exchange<Math, 1>;
  using Block = SlicedBlock<Math, Shape, H, false>;
  constexpr int kOwn = Block::kOwn;
  const ForwardDirection& d = p.direction[hw::block_y()];
  const Block block(p.slices, p.steps, static_cast<const T*>(d.w_hh), p.w_hh_stride, p.hidden,
                    p.trace);
  const H exchange(d.exchange, block.shared_operand, p.slices, p.hidden, p.steps.batch);
  typename Block::Operands operands;
  const int64_t unit = block.unit;
  const Gates<Acc> bias =
      block.unit_valid ? load_bias<Acc, T>(d.b_ih, d.b_hh, unit, p.hidden) : Gates<Acc>{};
  const auto put_h = [&](int local, int i, int64_t epoch, T h) {
    put<Math>(exchange, exchange.operand(block.row_tile(local), local, epoch), block.cell_row(i),
              unit, Math::round_operand(h));
  };

  // Epoch 0: the initial state. Rows beyond the batch and units beyond H stay zero.
  for (int local = 0; local < block.row_tiles; ++local) {
    if (!block.has_cells) break;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      T h{};
      if (block.valid(local, i)) {
        const int64_t row = block.row(local, i);
        if (d.h0) h = static_cast<const T*>(d.h0)[row * p.h0_stride + unit];
        block.state(local, i, 0) =
            load_or_zero<Acc>(static_cast<const T*>(d.c0), row, p.h0_stride, unit);
        block.state(local, i, 1) = to_acc(h);
      }
      put_h(local, i, 0, h);
    }
  }

  Turn turn{0, 0, false};
  if (block.has(turn, 0)) block.ask(operands, exchange, turn);
  while (block.has(turn, 0)) {
    const int local = turn.local;
    const int64_t t = d.reverse ? block.steps(local) - 1 - turn.step : turn.step;
    const int64_t n0 = p.steps.offset(t) + block.row0(local);
    bool live[kOwn];
    // Loaded before the product: these do not depend on the other blocks.
    Gates<Acc> x[kOwn], a[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      live[i] = block.valid(local, i) && t < block.length(local, i);
      if (!live[i]) continue;
      const int64_t n = n0 + block.cell_row(i);
      x[i] = bias + load_gates<Acc>(static_cast<const T*>(d.gates_x) + n * p.gates_x_stride + unit,
                                    p.hidden);
    }

    block.multiply(operands, exchange, turn);
    T h[kOwn] = {};
#pragma unroll
    for (int i = 0; i < kOwn && block.has_cells; ++i) {
      if (live[i]) {
        const auto z = block.sums(turn, i);
        a[i] =
            activate<Math>(x[i].i + z.at[0], x[i].f + z.at[1], x[i].g + z.at[2], x[i].o + z.at[3]);
        const Acc c = cell_state(a[i], block.state(local, i, 0));
        block.state(local, i, 0) = c;
        block.state(local, i, 1) = to_acc(From<T>::acc(hidden_state(a[i], Math::tanh_rounded(c))));
      }
      if (block.valid(local, i)) h[i] = From<T>::acc(block.state(local, i, 1));
      put_h(local, i, turn.step + 1, h[i]);
    }
    stamp(p.trace, turn.step, kSummed);
    block.retire(exchange, turn);
    stamp(p.trace, turn.step, kStored);

    const Turn next = block.after(turn, 0);
    if (block.has(next, 0)) block.ask(operands, exchange, next);
    // Stored last: nobody waits for these.
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!live[i]) continue;
      const int64_t n = n0 + block.cell_row(i);
      static_cast<T*>(d.y)[n * p.y_stride + unit] = h[i];
      if (kSave) {
        store_gates(static_cast<T*>(d.gates) + n * p.gates_stride + unit, p.hidden, a[i]);
        static_cast<Acc*>(d.c)[n * p.hidden + unit] = block.state(local, i, 0);
      }
    }
    stamp(p.trace, turn.step, kWritten);
    turn = next;
  }
  exchange.finish();

  for (int local = 0; local < block.row_tiles; ++local) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (!block.valid(local, i)) continue;
      const int64_t at = block.row(local, i) * p.hidden + unit;
      static_cast<T*>(d.c_n)[at] = From<T>::acc(block.state(local, i, 0));
      static_cast<T*>(d.h_n)[at] = From<T>::acc(block.state(local, i, 1));
    }
  }
}

}  // namespace cuda
}  // namespace fused_lstm
