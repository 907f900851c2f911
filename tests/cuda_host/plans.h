// Launches the kernels of each plan on a Case, as the launchers do on a device.
#pragma once

#include "block.cuh"
#include "case.h"
#include "gate_step.cuh"
#include "sliced_backward.cuh"
#include "sliced_forward.cuh"

namespace driver {

template <class Math>
ForwardParams forward_params(Case<Math>& c) {
  ForwardParams p{};
  p.steps = c.device_steps();
  p.hidden = c.hidden;
  p.gates_x_stride = p.gates_stride = 4 * c.hidden + c.pad;
  p.w_hh_stride = p.h0_stride = c.hidden + c.pad;
  p.y_stride = c.y.stride;
  for (size_t i = 0; i < c.directions.size(); ++i) {
    Direction<Math>& d = c.directions[i];
    p.direction[i] = {d.gates_x.data(),
                      c.bias ? d.b_ih.data() : nullptr,
                      c.bias ? d.b_hh.data() : nullptr,
                      d.w_hh.data(),
                      c.state ? d.h0.data() : nullptr,
                      c.state ? d.c0.data() : nullptr,
                      c.y.data() + i * c.hidden,
                      d.h_n.data(),
                      d.c_n.data(),
                      d.gates.data(),
                      d.c.data(),
                      d.exchange.data(),
                      d.reverse};
  }
  return p;
}

template <class Math>
BackwardParams backward_params(Case<Math>& c) {
  BackwardParams p{};
  p.steps = c.device_steps();
  p.hidden = c.hidden;
  p.gates_stride = p.dgates_stride = 4 * c.hidden + c.pad;
  p.w_hh_stride = p.c0_stride = p.grad_state_stride = c.hidden + c.pad;
  p.grad_y_stride = c.grad_y.stride;
  for (size_t i = 0; i < c.directions.size(); ++i) {
    Direction<Math>& d = c.directions[i];
    p.direction[i] = {d.w_hh.data(),
                      d.gates.data(),
                      d.c.data(),
                      c.state ? d.c0.data() : nullptr,
                      c.grad_y_given ? c.grad_y.data() + i * c.hidden : nullptr,
                      c.grad_state_given ? d.grad_h_n.data() : nullptr,
                      c.grad_state_given ? d.grad_c_n.data() : nullptr,
                      d.dgates.data(),
                      d.dh0.data(),
                      d.dc0.data(),
                      d.exchange.data(),
                      d.reverse};
  }
  return p;
}

// ---- plan D ----

// a[rows, k] b[k, columns] in double, rounded to T: what the GEMM of a step gives.
template <typename T, class A, class B>
void gemm(int64_t rows, int64_t columns, int64_t k, A a, B b, T* out) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < columns; ++n) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) sum += a(r, i) * b(i, n);
      if constexpr (sizeof(T) == 8) {
        out[r * columns + n] = sum;
      } else {
        out[r * columns + n] = From<T>::acc(static_cast<float>(sum));
      }
    }
  }
}

inline emulator::Grid gate_step_grid(int64_t rows, int64_t hidden, int vector, uint64_t seed) {
  return {
      static_cast<int>(gate_step_blocks(rows, hidden, vector)), 1, kGateStepThreads, 1, 0, seed};
}

template <class Math>
void gate_step_forward_layer(Case<Math>& c, Direction<Math>& d, typename Math::Element* y,
                             uint64_t seed) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  const int64_t h = c.hidden;
  Array<T> h_carry(c.batch * h, 0), gates_h(c.batch * 4 * h);
  Array<Acc> c_carry(c.batch * h, 0);
  for (int64_t i = 0; i < c.batch * h && c.state; ++i) {
    h_carry[i] = d.h0.at(i / h, i % h);
    c_carry[i] = to_acc(d.c0.at(i / h, i % h));
  }
  for (int64_t step = 0; step < c.steps; ++step) {
    const int64_t t = d.reverse ? c.steps - 1 - step : step;
    const int64_t first = c.offsets[t], live = c.offsets[t + 1] - first;
    gemm(
        live, 4 * h, h, [&](int64_t r, int64_t k) { return to_acc(h_carry[r * h + k]); },
        [&](int64_t k, int64_t n) { return d.w_hh.value(n, k); }, gates_h.data());
    GateForwardParams p{h, d.gates_x.stride, 4 * h, c.y.stride, d.gates.stride, {}};
    p.direction[0] = {live,
                      d.gates_x.data() + first * d.gates_x.stride,
                      gates_h.data(),
                      c.bias ? d.b_ih.data() : nullptr,
                      c.bias ? d.b_hh.data() : nullptr,
                      c_carry.data(),
                      y + first * c.y.stride,
                      h_carry.data(),
                      c.save ? d.gates.data() + first * d.gates.stride : nullptr,
                      c.save ? d.c.data() + first * h : nullptr};
    const int vector = gate_step_vector<Math>(p, 1);
    const auto kernel = gate_step_forward_kernel<Math>(vector, c.save);
    emulator::launch(gate_step_grid(live, h, vector, seed), [&] { kernel(p); });
  }
  for (int64_t i = 0; i < c.batch * h; ++i) {
    d.h_n.at(i / h, i % h) = h_carry[i];
    d.c_n.at(i / h, i % h) = From<T>::acc(c_carry[i]);
  }
}

template <class Math>
void gate_step_backward_layer(Case<Math>& c, Direction<Math>& d, typename Math::Element* grad_y,
                              uint64_t seed) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  const int64_t h = c.hidden;
  Array<T> dh_carry(c.batch * h, 0);
  Array<Acc> dc_carry(c.batch * h, 0);
  for (int64_t i = 0; i < c.batch * h && c.grad_state_given; ++i) {
    dh_carry[i] = d.grad_h_n.at(i / h, i % h);
    dc_carry[i] = to_acc(d.grad_c_n.at(i / h, i % h));
  }
  for (int64_t step = 0; step < c.steps; ++step) {
    const int64_t t = d.reverse ? step : c.steps - 1 - step;
    const int64_t before = d.reverse ? t + 1 : t - 1;
    const bool has_before = before >= 0 && before < c.steps;
    const int64_t first = c.offsets[t], live = c.offsets[t + 1] - first;
    GateBackwardParams p{h, c.grad_y.stride, h, d.gates.stride, d.c0.stride, d.dgates.stride, {}};
    p.direction[0] = {live,
                      c.grad_y_given ? grad_y + first * c.grad_y.stride : nullptr,
                      dh_carry.data(),
                      d.gates.data() + first * d.gates.stride,
                      d.c.data() + first * h,
                      has_before ? d.c.data() + c.offsets[before] * h : nullptr,
                      c.state ? d.c0.data() : nullptr,
                      has_before ? std::min(live, c.offsets[before + 1] - c.offsets[before]) : 0,
                      dc_carry.data(),
                      d.dgates.data() + first * d.dgates.stride};
    const int vector = gate_step_vector<Math>(p, 1);
    const auto kernel = gate_step_backward_kernel<Math>(vector);
    emulator::launch(gate_step_grid(live, h, vector, seed), [&] { kernel(p); });
    gemm(
        live, h, 4 * h, [&](int64_t r, int64_t k) { return d.dgates.value(first + r, k); },
        [&](int64_t k, int64_t n) { return d.w_hh.value(k, n); }, dh_carry.data());
  }
  for (int64_t i = 0; i < c.batch * h; ++i) {
    d.dh0.at(i / h, i % h) = dh_carry[i];
    d.dc0.at(i / h, i % h) = From<T>::acc(dc_carry[i]);
  }
}

template <class Math>
void run_gate_step(Case<Math>& c, uint64_t seed) {
  for (size_t i = 0; i < c.directions.size(); ++i) {
    gate_step_forward_layer(c, c.directions[i], c.y.data() + i * c.hidden, seed);
    if (!c.save) continue;
    gate_step_backward_layer(c, c.directions[i], c.grad_y.data() + i * c.hidden, seed);
  }
}

// ---- plan A ----

template <class Math, int kRegTiles>
void run_block_with(Case<Math>& c, uint64_t seed) {
  constexpr int kThreads = 1024;
  emulator::Grid grid;
  grid.x = static_cast<int>(row_tile_count(c.batch));
  grid.y = static_cast<int>(c.directions.size());
  grid.threads = static_cast<int>(32 * unit_tile_count(c.hidden));
  grid.seed = seed;
  const int element = sizeof(typename Math::Element);
  const ForwardParams f = forward_params(c);
  grid.shared = BlockLayout(c.hidden, element, 1, kRegTiles).bytes;
  if (!c.save) {
    return emulator::launch(grid, [&] { block_forward<Math, kRegTiles, kThreads, false>(f); });
  }
  emulator::launch(grid, [&] { block_forward<Math, kRegTiles, kThreads, true>(f); });
  const BackwardParams b = backward_params(c);
  grid.shared = BlockLayout(c.hidden, element, 4, kRegTiles).bytes;
  emulator::launch(grid, [&] { block_backward<Math, kRegTiles, kThreads>(b); });
}

template <class Math>
void run_block(Case<Math>& c, const Options& options, uint64_t seed) {
  if (options.number("reg_tiles") == 0) return run_block_with<Math, 0>(c, seed);
  if constexpr (Math::kTensorCore) return run_block_with<Math, 2>(c, seed);
  throw std::runtime_error("not compiled: reg_tiles");
}

// ---- plans B and C ----

template <class Math>
void allocate_exchange(Case<Math>& c, int operands) {
  const int element = sizeof(typename Math::Element);
  for (Direction<Math>& d : c.directions) {
    d.exchange = Array<char>(exchange_bytes(c.batch, c.hidden, element, operands));
  }
}

template <class Math, template <class, int> class Exchange, class Shape>
void run_sliced_with(Case<Math>& c, const Options& options, uint64_t seed) {
  constexpr bool kCluster = Exchange<Math, 1>::kCluster;
  const int element = sizeof(typename Math::Element);
  Slices slices{};
  slices.unit_tiles = Shape::kUnitTiles;
  slices.unit_parts = Shape::kUnitParts;
  slices.k_warps = Shape::kThreads / 32 / Shape::kUnitParts;
  slices.slices =
      static_cast<int>(ceil_div(sliced_unit_tiles(c.hidden, element), Shape::kUnitTiles));
  slices.groups = options.number("groups");
  const int acc = sizeof(typename Math::Acc);
  const auto shared = [&](int operands) {
    return SlicedLayout(slices, c.hidden, c.batch, element, acc, operands, Shape::kRegTiles,
                        kCluster)
        .bytes;
  };
  emulator::Grid grid;
  grid.x = slices.slices * slices.groups;
  grid.y = static_cast<int>(c.directions.size());
  grid.threads = Shape::kThreads;
  grid.cluster = kCluster ? slices.slices : 1;
  grid.seed = seed;

  allocate_exchange(c, 1);
  ForwardParams f = forward_params(c);
  f.slices = slices;
  grid.shared = shared(1);
  if (!c.save) {
    return emulator::launch(grid, [&] { sliced_forward<Math, Exchange, Shape, false>(f); });
  }
  emulator::launch(grid, [&] { sliced_forward<Math, Exchange, Shape, true>(f); });
  allocate_exchange(c, kGates);
  BackwardParams b = backward_params(c);
  b.slices = slices;
  grid.shared = shared(kGates);
  emulator::launch(grid, [&] { sliced_backward<Math, Exchange, Shape>(b); });
}

template <class Math, template <class, int> class Exchange>
void run_sliced(Case<Math>& c, const Options& options, uint64_t seed) {
  // Every arithmetic with one unit tile; the other shapes where they differ, to compile faster.
  constexpr bool kRegisters = Math::kTensorCore && !std::is_same_v<Math, Fp16>;
  const int unit_tiles = options.number("unit_tiles"), reg_tiles = options.number("reg_tiles");
  const int threads = options.number("threads"), parts = std::max(1, options.number("unit_parts"));
  const auto is = [&](int tiles, int unit_parts, int registers, int of_block) {
    return unit_tiles == tiles && parts == unit_parts && reg_tiles == registers &&
           (threads ? threads : 128) == of_block;
  };
  if (is(1, 1, 0, 128)) {
    return run_sliced_with<Math, Exchange, SlicedShape<1, 1, 0, 128>>(c, options, seed);
  }
  if constexpr (kRegisters) {
    if (is(1, 1, 2, 128)) {
      return run_sliced_with<Math, Exchange, SlicedShape<1, 1, 2, 128>>(c, options, seed);
    }
  }
  // A thread for each cell, for every second one, and more threads than cells.
  if constexpr (std::is_same_v<Math, Bf16>) {
    if (is(2, 1, 1, 256)) {
      return run_sliced_with<Math, Exchange, SlicedShape<2, 1, 1, 256>>(c, options, seed);
    }
    if (is(4, 2, 1, 256)) {
      return run_sliced_with<Math, Exchange, SlicedShape<4, 2, 1, 256>>(c, options, seed);
    }
  }
  if constexpr (std::is_same_v<Math, Fp32>) {
    if (is(4, 1, 0, 256)) {
      return run_sliced_with<Math, Exchange, SlicedShape<4, 1, 0, 256>>(c, options, seed);
    }
    if (is(1, 1, 0, 160)) {
      return run_sliced_with<Math, Exchange, SlicedShape<1, 1, 0, 160>>(c, options, seed);
    }
  }
  throw std::runtime_error("not compiled: this shape of a block");
}

}  // namespace driver
