// Plans B and C, forward. See sliced.cuh for who does what, exchange.cuh for how h travels.
#pragma once

#include "sliced.cuh"

namespace fused_lstm {
namespace cuda {

template <class Math, template <class, int> class Exchange, int kUnitTiles, int kRegTiles,
          int kMaxThreads, bool kSave>
__global__ void __launch_bounds__(kMaxThreads, 1)
    sliced_forward(const __grid_constant__ ForwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  using H = Exchange<Math, 1>;
  const ForwardDirection& d = p.direction[hw::block_y()];
  const SlicedBlock<Math, kUnitTiles, kRegTiles, false, H::kCluster> block(
      p.slices, p.steps, static_cast<const T*>(d.w_hh), p.w_hh_stride, p.hidden);
  H exchange(d.exchange, d.flags, block.shared_operand, p.slices, block.slice, p.hidden,
             p.steps.batch, block.weights.first, block.weights.count);
  const bool reverse = d.reverse != 0;
  const int64_t unit = block.unit;

  // Epoch 0: the initial state. Rows beyond the batch and units beyond H stay zero.
  for (int local = 0; local < block.row_tiles; ++local) {
    const int64_t row = block.row0(local) + block.cell_row;
    if (block.unit_valid && row < p.steps.batch) {
      const T h = d.h0 ? static_cast<const T*>(d.h0)[row * p.h0_stride + unit] : T{};
      block.state(local, 0) =
          load_or_zero<Acc>(static_cast<const T*>(d.c0), row, p.h0_stride, unit);
      block.state(local, 1) = to_acc(h);
      char* operand = exchange.operand(block.row_tile(local), local, 0);
      exchange.put(operand_at<Math>(operand, block.cell_row, unit), Math::round_operand(h));
    }
    exchange.publish(block.row_tile(local), local, 0);
  }

  const int64_t longest = block.row_tiles > 0 ? block.steps(0) : 0;
  for (int64_t step = 0; step < longest; ++step) {
    for (int local = 0; local < block.row_tiles && step < block.steps(local); ++local) {
      const int64_t t = reverse ? block.steps(local) - 1 - step : step;
      const int64_t row = block.row0(local) + block.cell_row;
      const bool valid = block.unit_valid && row < p.steps.batch;
      const bool live = valid && t < block.length(local);
      const int64_t n = live ? p.steps.offset(t) + row : 0;
      // Loaded before the wait: these do not depend on the other blocks.
      Gates<Acc> x{};
      if (live) {
        x = load_gates<Acc>(static_cast<const T*>(d.gates_x) + n * p.gates_x_stride + unit,
                            p.hidden);
      }

      exchange.wait(block.row_tile(local), step);
      block.multiply(exchange, exchange.operand(block.row_tile(local), local, step));
      Gates<Acc> a{};
      if (live) {
        a = activate(x.i + block.sum(0), x.f + block.sum(1), x.g + block.sum(2),
                     x.o + block.sum(3));
        const Acc c = cell_state(a, block.state(local, 0));
        block.state(local, 0) = c;
        block.state(local, 1) = to_acc(From<T>::acc(hidden_state(a, tanh_of(c))));
      }
      const T h = valid ? From<T>::acc(block.state(local, 1)) : T{};
      if (valid) {
        char* operand = exchange.operand(block.row_tile(local), local, step + 1);
        exchange.put(operand_at<Math>(operand, block.cell_row, unit), Math::round_operand(h));
      }
      exchange.publish(block.row_tile(local), local, step + 1);
      // Stored last: publishing waits for the stores before it.
      if (live) {
        static_cast<T*>(d.y)[n * p.y_stride + unit] = h;
        if (kSave) {
          store_gates(static_cast<T*>(d.gates) + n * p.gates_stride + unit, p.hidden, a);
          static_cast<Acc*>(d.c)[n * p.hidden + unit] = block.state(local, 0);
        }
      }
    }
  }
  exchange.finish();

  for (int local = 0; local < block.row_tiles; ++local) {
    const int64_t row = block.row0(local) + block.cell_row;
    if (!block.unit_valid || row >= p.steps.batch) continue;
    const int64_t at = row * p.hidden + unit;
    static_cast<T*>(d.c_n)[at] = From<T>::acc(block.state(local, 0));
    static_cast<T*>(d.h_n)[at] = From<T>::acc(block.state(local, 1));
  }
}

}  // namespace cuda
}  // namespace fused_lstm
