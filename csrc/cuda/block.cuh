// Plan A: all steps in one block per row tile, for small H.
//
// A block owns 16 batch rows and all hidden units; W_hh lies in its shared memory and registers.
// Warp w owns unit tile w, computes its four gates for the 16 rows and finishes those cells in the
// registers that hold the sums, so h (forward) or the gate gradients (backward) only pass through
// shared memory once per step. Two operand buffers, for even and odd steps, make one __syncthreads
// per step enough: what a step reads is not written before the next step's barrier.
//
// Rows whose sequence has ended, or going backwards in time has not begun, keep their state; so
// h_n, c_n and the state gradients are what the registers hold at the end.
//
// Launch: grid (row tiles, directions), 32 * unit tiles threads (at most kMaxThreads),
// BlockLayout::bytes of shared memory. kRegTiles k tiles of weights stay in registers.
#pragma once

#include "layout.h"
#include "product.cuh"
#include "walk.cuh"

namespace fused_lstm {
namespace cuda {

// The part of a block's shared memory and weights that forward and backward set up alike.
template <class Math, int kRegTiles, bool kTransposed>
struct BlockSetup {
  using T = typename Math::Element;
  static constexpr int kOperands = kTransposed ? kGates : 1;

  char* operand;       // [2][kOperands][k tiles] operand tiles
  int64_t gate_bytes;  // of one of the kOperands
  WarpWeights<Math, 1, kRegTiles, kTransposed> weights;

  __device__ __forceinline__ BlockSetup(const T* w_hh, int64_t stride, int64_t hidden) {
    const BlockLayout layout(hidden, sizeof(T), kOperands, kRegTiles);
    const int k_tiles = static_cast<int>(k_tile_count(hidden, sizeof(T)));
    operand = hw::shared_memory() + layout.operand;
    gate_bytes = operand_bytes(hidden, sizeof(T), 1);
    weights.first = 0;
    weights.count = k_tiles;
    weights.shared =
        hw::shared_memory() + hw::warp() * shared_k_tiles(k_tiles, kRegTiles) * kBlockBytes;
    weights.load(w_hh, stride, hidden, hw::warp() * kUnitTile);
    const int words = static_cast<int>((layout.bytes - layout.operand) / sizeof(int4));
    for (int i = hw::thread(); i < words; i += hw::threads()) {
      reinterpret_cast<int4*>(operand)[i] = int4{0, 0, 0, 0};
    }
    hw::sync_block();
  }

  __device__ __forceinline__ char* buffer(int64_t step) const {
    return operand + (step & 1) * kOperands * gate_bytes;
  }
  __device__ __forceinline__ void multiply(typename Math::Acc (&sum)[kGates][4],
                                           int64_t step) const {
    typename Math::Acc all[1][kGates][4] = {};
    weights.multiply(all, buffer(step), gate_bytes, LoadShared());
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[gate][e] = all[0][gate][e];
    }
  }
};

template <class Math, int kRegTiles, int kMaxThreads, bool kSave>
__global__ void __launch_bounds__(kMaxThreads)
    block_forward(const __grid_constant__ ForwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  const ForwardDirection& d = p.direction[hw::block_y()];
  const BlockSetup<Math, kRegTiles, false> setup(static_cast<const T*>(d.w_hh), p.w_hh_stride,
                                                 p.hidden);
  const int64_t row0 = hw::block_x() * kRowTile;
  const int64_t unit0 = hw::warp() * kUnitTile;
  const Walk walk(p.steps, row0, d.reverse != 0);

  Acc c[4];
  T h[4];
  bool valid[4];       // a row of the batch and a unit of the layer
  int64_t length[2];   // of the lane's two rows
  Gates<Acc> bias[2];  // of its two units
  for (int u = 0; u < 2; ++u) {
    const int64_t unit = unit0 + cell_unit(u);
    bias[u] = unit < p.hidden ? load_bias<Acc, T>(d.b_ih, d.b_hh, unit, p.hidden) : Gates<Acc>{};
  }
  for (int i = 0; i < 2; ++i) length[i] = row_length(p.steps, row0 + cell_row(2 * i));
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int64_t row = row0 + cell_row(e), unit = unit0 + cell_unit(e);
    valid[e] = row < p.steps.batch && unit < p.hidden;
    c[e] = valid[e] ? load_or_zero<Acc>(static_cast<const T*>(d.c0), row, p.h0_stride, unit) : 0;
    h[e] = valid[e] && d.h0 ? static_cast<const T*>(d.h0)[row * p.h0_stride + unit] : T{};
    if (valid[e]) *operand_at<Math>(setup.buffer(0), cell_row(e), unit) = Math::round_operand(h[e]);
  }

  for (int64_t step = 0; step < walk.count; ++step) {
    const int64_t t = walk.forward(step);
    Gates<Acc> x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[e] = {};
      if (valid[e] && t < length[e / 2]) {
        const int64_t n = p.steps.offset(t) + row0 + cell_row(e);
        x[e] = bias[e % 2] + load_gates<Acc>(static_cast<const T*>(d.gates_x) +
                                                 n * p.gates_x_stride + unit0 + cell_unit(e),
                                             p.hidden);
      }
    }
    hw::sync_block();
    Acc z[kGates][4];
    setup.multiply(z, step);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t unit = unit0 + cell_unit(e);
      if (!valid[e]) continue;
      if (t < length[e / 2]) {
        const int64_t n = p.steps.offset(t) + row0 + cell_row(e);
        const Gates<Acc> a =
            activate<Math>(z[0][e] + x[e].i, z[1][e] + x[e].f, z[2][e] + x[e].g, z[3][e] + x[e].o);
        c[e] = cell_state(a, c[e]);
        h[e] = From<T>::acc(hidden_state(a, Math::tanh(c[e])));
        static_cast<T*>(d.y)[n * p.y_stride + unit] = h[e];
        if (kSave) {
          store_gates(static_cast<T*>(d.gates) + n * p.gates_stride + unit, p.hidden, a);
          static_cast<Acc*>(d.c)[n * p.hidden + unit] = c[e];
        }
      }
      *operand_at<Math>(setup.buffer(step + 1), cell_row(e), unit) = Math::round_operand(h[e]);
    }
  }

#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (!valid[e]) continue;
    const int64_t at = (row0 + cell_row(e)) * p.hidden + unit0 + cell_unit(e);
    static_cast<T*>(d.h_n)[at] = h[e];
    static_cast<T*>(d.c_n)[at] = From<T>::acc(c[e]);
  }
}

template <class Math, int kRegTiles, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads)
    block_backward(const __grid_constant__ BackwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  // The product hides the way to memory, where there are registers for 28 more values.
  constexpr bool kLoadEarly = Math::kTensorCore && kMaxThreads <= 512;
  const BackwardDirection& d = p.direction[hw::block_y()];
  const BlockSetup<Math, kRegTiles, true> setup(static_cast<const T*>(d.w_hh), p.w_hh_stride,
                                                p.hidden);
  const int64_t row0 = hw::block_x() * kRowTile;
  const int64_t unit0 = hw::warp() * kUnitTile;
  const Walk walk(p.steps, row0, d.reverse != 0);

  Acc dh[4], dc[4];  // what later steps left for h and c
  bool valid[4];
  int64_t length[2];
  for (int i = 0; i < 2; ++i) length[i] = row_length(p.steps, row0 + cell_row(2 * i));
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int64_t row = row0 + cell_row(e), unit = unit0 + cell_unit(e);
    valid[e] = row < p.steps.batch && unit < p.hidden;
    const int64_t r = valid[e] ? row : 0, u = valid[e] ? unit : 0;
    dh[e] = load_or_zero<Acc>(static_cast<const T*>(d.grad_h_n), r, p.grad_state_stride, u);
    dc[e] = load_or_zero<Acc>(static_cast<const T*>(d.grad_c_n), r, p.grad_state_stride, u);
  }

  // Step `step` multiplies the gate gradients of step - 1, which are there for the rows that were
  // live then; the step after the last one does nothing else.
  for (int64_t step = 0; step <= walk.count; ++step) {
    const int64_t t = walk.backward(step);
    bool live[4];
    SavedCell<Acc> saved[4];
    const auto load = [&](int e) {
      return load_saved<T, Acc>(p, d, t, row0 + cell_row(e), unit0 + cell_unit(e), length[e / 2]);
    };
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      live[e] = valid[e] && step < walk.count && t < length[e / 2];
      if (kLoadEarly && live[e]) saved[e] = load(e);
    }
    if (step > 0) {
      const int64_t t_before = walk.backward(step - 1);
      hw::sync_block();
      Acc sum[kGates][4];
      setup.multiply(sum, step - 1);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (t_before < length[e / 2]) dh[e] = sum[0][e] + sum[1][e] + (sum[2][e] + sum[3][e]);
      }
    }
    if (step == walk.count) break;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (!valid[e]) continue;
      const int64_t unit = unit0 + cell_unit(e);
      Gates<T> dz{};
      if (live[e]) {
        const SavedCell<Acc> s = kLoadEarly ? saved[e] : load(e);
        dz = gates_of<T>(gate_gradients(s.a, s.c_prev, Math::tanh(s.c), dh[e] + s.grad_y, dc[e]));
        const int64_t n = p.steps.offset(t) + row0 + cell_row(e);
        put_gates(static_cast<T*>(d.dgates) + n * p.dgates_stride + unit, p.hidden, dz,
                  [](T* to, T value) { *to = value; });
      }
      put_gates(operand_at<Math>(setup.buffer(step), cell_row(e), unit),
                setup.gate_bytes / static_cast<int64_t>(sizeof(T)), dz,
                [](T* to, T value) { *to = Math::round_operand(value); });
    }
  }

#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (!valid[e]) continue;
    const int64_t at = (row0 + cell_row(e)) * p.hidden + unit0 + cell_unit(e);
    if (d.dh0) static_cast<T*>(d.dh0)[at] = From<T>::acc(dh[e]);
    if (d.dc0) static_cast<T*>(d.dc0)[at] = From<T>::acc(dc[e]);
  }
}

}  // namespace cuda
}  // namespace fused_lstm
