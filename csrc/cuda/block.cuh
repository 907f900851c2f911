// Plan A: all steps in one block per row tile, for small H.
//
// A block owns 16 batch rows and all hidden units; W_hh lies in its shared memory and registers.
// Warp w owns unit tile w, computes its four gates for the 16 rows and finishes those cells in the
// registers that hold the sums, so h (forward) or the gate gradients (backward) only pass through
// shared memory once per step. Two operand buffers, for even and odd steps, make one __syncthreads
// per step enough: what a step reads is not written before the next step's barrier.
//
// A lane has two rows of two neighbouring units each (pairs.cuh). What it needs of memory it asks
// for a whole step ahead where there are registers for that: a step takes some 0.4 us, as long as
// the way to memory.
//
// Rows whose sequence has ended, or going backwards in time has not begun, keep their state; so
// h_n, c_n and the state gradients are what the registers hold at the end.
//
// Launch: grid (row tiles, directions), 32 * unit tiles threads (at most kMaxThreads),
// BlockLayout::bytes of shared memory. kRegTiles k tiles of weights stay in registers.
#pragma once

#include "layout.h"
#include "pairs.cuh"
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
    SharedOperands<Math, kOperands> operands{buffer(step), gate_bytes};
    weights.multiply(all, operands);
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[gate][e] = all[0][gate][e];
    }
  }
};

// The lane's rows and units: cell e is row e / 2 and unit e % 2 of them.
struct BlockCells {
  int64_t row[2];     // of the batch
  int64_t length[2];  // steps of the row; 0 beyond the batch
  int64_t unit;       // the first of its two
  int units;          // how many of them exist

  __device__ __forceinline__ BlockCells(const Steps& steps, int64_t hidden)
      : unit(hw::warp() * kUnitTile + cell_unit(0)) {
    const int64_t left = hidden - unit;
    units = left >= 2 ? 2 : left == 1 ? 1 : 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      row[i] = hw::block_x() * kRowTile + cell_row(2 * i);
      length[i] = row_length(steps, row[i]);
    }
  }
  __device__ __forceinline__ bool valid(int e, const Steps& steps) const {
    return row[e / 2] < steps.batch && e % 2 < units;
  }
};

template <class Math, int kRegTiles, int kMaxThreads, bool kSave>
__global__ void __launch_bounds__(kMaxThreads)
    block_forward(const __grid_constant__ ForwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  // Where there are registers for two steps' gates.
  constexpr bool kAhead = Math::kTensorCore && kMaxThreads <= (sizeof(T) == 2 ? 512 : 256);
  const ForwardDirection& d = p.direction[hw::block_y()];
  const BlockSetup<Math, kRegTiles, false> setup(static_cast<const T*>(d.w_hh), p.w_hh_stride,
                                                 p.hidden);
  const BlockCells cells(p.steps, p.hidden);
  const Walk walk(p.steps, hw::block_x() * kRowTile, d.reverse != 0);
  // At row n; made when they are needed, to keep no addresses in registers.
  const auto gates_x = [&](int64_t n) {
    return static_cast<const T*>(d.gates_x) + n * p.gates_x_stride + cells.unit;
  };
  const auto gates_out = [&](int64_t n) {
    return static_cast<T*>(d.gates) + n * p.gates_stride + cells.unit;
  };
  const auto y = [&](int64_t n) { return static_cast<T*>(d.y) + n * p.y_stride + cells.unit; };
  const auto c_out = [&](int64_t n) { return static_cast<Acc*>(d.c) + n * p.hidden + cells.unit; };
  const bool together = Math::kTensorCore && p.hidden % 2 == 0 &&
                        pairs_aligned(gates_x(0), p.gates_x_stride) &&
                        pairs_aligned(gates_out(0), p.gates_stride) &&
                        pairs_aligned(y(0), p.y_stride) && pairs_aligned(c_out(0), p.hidden);

  Acc c[4];
  T h[4];
  Gates<Acc> bias[2];  // of its two units
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    bias[u] = u < cells.units ? load_bias<Acc, T>(d.b_ih, d.b_hh, cells.unit + u, p.hidden)
                              : Gates<Acc>{};
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const bool valid = cells.valid(e, p.steps);
    const int64_t row = cells.row[e / 2], unit = cells.unit + e % 2;
    c[e] = valid ? load_or_zero<Acc>(static_cast<const T*>(d.c0), row, p.h0_stride, unit) : 0;
    h[e] = valid && d.h0 ? static_cast<const T*>(d.h0)[row * p.h0_stride + unit] : T{};
    if (valid) *operand_at<Math>(setup.buffer(0), cell_row(e), unit) = Math::round_operand(h[e]);
  }
  const auto load_x = [&](PairGates<T>(&x)[2], int64_t step) {
    const int64_t t = walk.forward(step);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (step >= walk.count || t >= cells.length[i]) continue;
      x[i].load(gates_x(p.steps.offset(t) + cells.row[i]), p.hidden, cells.units, together);
    }
  };

  PairGates<T> ahead[2];
  if (kAhead) load_x(ahead, 0);
  for (int64_t step = 0; step < walk.count; ++step) {
    const int64_t t = walk.forward(step);
    PairGates<T> x[2];
    if (kAhead) {
      x[0] = ahead[0];
      x[1] = ahead[1];
      load_x(ahead, step + 1);
    } else {
      load_x(x, step);
    }
    hw::sync_block();
    Acc z[kGates][4];
    setup.multiply(z, step);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (t < cells.length[i]) {
        Pair<T> h_row;
        Pair<Acc> c_row;
        PairGates<T> a_row;
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const int e = 2 * i + u;
          const Gates<Acc> in = bias[u] + x[i].template of<Acc>(u);
          const Gates<Acc> a =
              activate<Math>(z[0][e] + in.i, z[1][e] + in.f, z[2][e] + in.g, z[3][e] + in.o);
          c_row.at[u] = c[e] = cell_state(a, c[e]);
          h_row.at[u] = h[e] = From<T>::acc(hidden_state(a, Math::tanh_rounded(c[e])));
          a_row.set(u, gates_of<T>(a));
        }
        const int64_t n = p.steps.offset(t) + cells.row[i];
        store_pair(y(n), h_row, cells.units, together);
        if (kSave) {
          a_row.store(gates_out(n), p.hidden, cells.units, together);
          store_pair(c_out(n), c_row, cells.units, together);
        }
      }
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        if (u >= cells.units) continue;
        const int e = 2 * i + u;
        *operand_at<Math>(setup.buffer(step + 1), cell_row(e), cells.unit + u) =
            Math::round_operand(h[e]);
      }
    }
  }

#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (!cells.valid(e, p.steps)) continue;
    const int64_t at = cells.row[e / 2] * p.hidden + cells.unit + e % 2;
    static_cast<T*>(d.h_n)[at] = h[e];
    static_cast<T*>(d.c_n)[at] = From<T>::acc(c[e]);
  }
}

// What the backward pass reads of a lane's two cells in one row.
template <typename T, typename Acc>
struct SavedPair {
  PairGates<T> a;
  Pair<T> grad_y;
  Pair<Acc> c, c_prev;
};

template <class Math, int kRegTiles, int kMaxThreads>
__global__ void __launch_bounds__(kMaxThreads)
    block_backward(const __grid_constant__ BackwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  // The product hides the way to memory, where there are registers for 28 more values; a whole step
  // does, where there are for 28 more.
  constexpr bool kEarly = Math::kTensorCore && kMaxThreads <= 512;
  constexpr bool kAhead = Math::kTensorCore && kMaxThreads <= 256;
  const BackwardDirection& d = p.direction[hw::block_y()];
  const BlockSetup<Math, kRegTiles, true> setup(static_cast<const T*>(d.w_hh), p.w_hh_stride,
                                                p.hidden);
  const BlockCells cells(p.steps, p.hidden);
  const Walk walk(p.steps, hw::block_x() * kRowTile, d.reverse != 0);
  const auto gates = [&](int64_t n) {
    return static_cast<const T*>(d.gates) + n * p.gates_stride + cells.unit;
  };
  const auto grad_y = [&](int64_t n) {
    return static_cast<const T*>(d.grad_y) + n * p.grad_y_stride + cells.unit;
  };
  const auto c_in = [&](int64_t n) {
    return static_cast<const Acc*>(d.c) + n * p.hidden + cells.unit;
  };
  const auto dgates = [&](int64_t n) {
    return static_cast<T*>(d.dgates) + n * p.dgates_stride + cells.unit;
  };
  const bool together =
      Math::kTensorCore && p.hidden % 2 == 0 && pairs_aligned(gates(0), p.gates_stride) &&
      (!d.grad_y || pairs_aligned(grad_y(0), p.grad_y_stride)) &&
      pairs_aligned(dgates(0), p.dgates_stride) && pairs_aligned(c_in(0), p.hidden);

  Acc dh[4], dc[4];  // what later steps left for h and c
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const bool valid = cells.valid(e, p.steps);
    const int64_t r = valid ? cells.row[e / 2] : 0, u = valid ? cells.unit + e % 2 : 0;
    dh[e] = load_or_zero<Acc>(static_cast<const T*>(d.grad_h_n), r, p.grad_state_stride, u);
    dc[e] = load_or_zero<Acc>(static_cast<const T*>(d.grad_c_n), r, p.grad_state_stride, u);
  }
  const auto load = [&](SavedPair<T, Acc>& s, int i, int64_t step) {
    const int64_t t = walk.backward(step), before = d.reverse ? t + 1 : t - 1;
    if (step >= walk.count || t >= cells.length[i]) return;
    const int64_t n = p.steps.offset(t) + cells.row[i];
    s.a.load(gates(n), p.hidden, cells.units, together);
    s.c = load_pair(c_in(n), cells.units, together);
    s.grad_y = d.grad_y ? load_pair(grad_y(n), cells.units, together) : Pair<T>{};
    if (before >= 0 && before < cells.length[i]) {
      s.c_prev = load_pair(c_in(p.steps.offset(before) + cells.row[i]), cells.units, together);
      return;
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      s.c_prev.at[u] = u < cells.units
                           ? load_or_zero<Acc>(static_cast<const T*>(d.c0), cells.row[i],
                                               p.c0_stride, cells.unit + u)
                           : Acc(0);
    }
  };
  const auto load_both = [&](SavedPair<T, Acc>(&saved)[2], int64_t step) {
    load(saved[0], 0, step);
    load(saved[1], 1, step);
  };

  // Step `step` multiplies the gate gradients of step - 1, which are there for the rows that were
  // live then; the step after the last one does nothing else.
  SavedPair<T, Acc> ahead[2];
  if (kAhead) load_both(ahead, 0);
  for (int64_t step = 0; step <= walk.count; ++step) {
    const int64_t t = walk.backward(step);
    SavedPair<T, Acc> saved[2];
    if (kAhead) {
      saved[0] = ahead[0];
      saved[1] = ahead[1];
      load_both(ahead, step + 1);
    } else if (kEarly) {
      load_both(saved, step);
    }
    if (step > 0) {
      const int64_t t_before = walk.backward(step - 1);
      hw::sync_block();
      Acc sum[kGates][4];
      setup.multiply(sum, step - 1);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (t_before >= cells.length[e / 2]) continue;
        dh[e] = sum[0][e] + sum[1][e] + (sum[2][e] + sum[3][e]);
      }
    }
    if (step == walk.count) break;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!kEarly) load(saved[i], i, step);
      const bool live = t < cells.length[i];
      PairGates<T> dz_row;
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int e = 2 * i + u;
        Gates<T> dz{};
        if (live) {
          const SavedPair<T, Acc>& s = saved[i];
          dz = gates_of<T>(gate_gradients(s.a.template of<Acc>(u), s.c_prev.at[u],
                                          Math::tanh(s.c.at[u]),
                                          dh[e] + static_cast<Acc>(to_acc(s.grad_y.at[u])), dc[e]));
          dz_row.set(u, dz);
        }
        if (u >= cells.units) continue;
        put_gates(operand_at<Math>(setup.buffer(step), cell_row(e), cells.unit + u),
                  setup.gate_bytes / static_cast<int64_t>(sizeof(T)), dz,
                  [](T* to, T value) { *to = Math::round_operand(value); });
      }
      if (!live) continue;
      dz_row.store(dgates(p.steps.offset(t) + cells.row[i]), p.hidden, cells.units, together);
    }
  }

#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (!cells.valid(e, p.steps)) continue;
    const int64_t at = cells.row[e / 2] * p.hidden + cells.unit + e % 2;
    if (d.dh0) static_cast<T*>(d.dh0)[at] = From<T>::acc(dh[e]);
    if (d.dc0) static_cast<T*>(d.dc0)[at] = From<T>::acc(dc[e]);
  }
}

}  // namespace cuda
}  // namespace fused_lstm
