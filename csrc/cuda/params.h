// What the launchers hand to the kernels: plain data, no CUDA and no torch header.
//
// Strides are in elements, not bytes, and every offset is 64-bit. Pointers are untyped; the kernel
// template knows the element type T (float, double, bfloat16, half). "Acc" below is the type that
// c and all sums are kept in: double for double, float for everything else.
//
// Rows. A sequence is N rows; step t owns `live(t)` consecutive rows that begin at `offset(t)`.
// Dense input has live(t) = batch for every step. Packed input gives `offsets`, whose differences
// never grow: row b of step t and row b of step t + 1 belong to the same sequence.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FUSED_LSTM_HOST_DEVICE __host__ __device__
#else
#define FUSED_LSTM_HOST_DEVICE
#endif

namespace fused_lstm {
namespace cuda {

constexpr int kMaxDirections = 2;

struct Steps {
  int64_t count;           // T
  int64_t batch;           // B: live rows of the fullest step
  const int64_t* offsets;  // [T + 1] in device memory; nullptr for dense input

  FUSED_LSTM_HOST_DEVICE int64_t offset(int64_t t) const {
    return offsets ? offsets[t] : t * batch;
  }
  FUSED_LSTM_HOST_DEVICE int64_t live(int64_t t) const {
    return offsets ? offsets[t + 1] - offsets[t] : batch;
  }
};

// How plans B and C cut one direction over blocks.
//
// A unit tile is 8 hidden units with all four of their gates; a row tile is 16 batch rows. A block
// owns `unit_tiles` unit tiles and the row tiles `group`, `group + groups`, ... of the batch. Each
// of its `unit_parts * k_warps` warps sums its share of the k tiles of the recurrent product for
// its part of the block's units; then the threads share out the 128 * unit_tiles cells of the row
// tile. Plan B: the `slices` blocks of a group are one cluster.
struct Slices {
  int32_t unit_tiles;  // unit tiles per block
  int32_t unit_parts;  // into which the warps cut those unit tiles
  int32_t k_warps;     // warps of a part: they share out its k tiles
  int32_t slices;      // blocks that together own all: ceil(sliced_unit_tiles() / unit_tiles)
  int32_t groups;      // how many groups of `slices` blocks share the row tiles
};

// ---- plans A, B, C: the recurrent loop of one layer, all directions in one launch ----

struct ForwardDirection {
  const void* gates_x;  // [N, 4H] T: W_ih x, gate order i f g o
  const void* b_ih;     // [4H] T, or nullptr for zeros
  const void* b_hh;     // [4H] T, or nullptr for zeros
  const void* w_hh;     // [4H, H] T
  const void* h0;       // [B, H] T, or nullptr for zeros
  const void* c0;       // [B, H] T, or nullptr for zeros
  void* y;              // [N, H] T, row stride y_stride (the direction's own columns)
  void* h_n;            // [B, H] T
  void* c_n;            // [B, H] T
  void* gates;          // [N, 4H] T activated gates; may be gates_x itself. Only if saving
  void* c;              // [N, H] Acc cell states. Only if saving
  void* exchange;       // plan C: exchange_bytes(), 16-byte aligned, all bits set before the launch
  int32_t reverse;      // 1: walks time from the last step to the first
};

struct ForwardParams {
  Steps steps;
  int64_t hidden;          // H
  int64_t gates_x_stride;  // between rows of gates_x
  int64_t gates_stride;    // between rows of gates
  int64_t w_hh_stride;     // between rows of w_hh
  int64_t h0_stride;       // between rows of h0 and of c0
  int64_t y_stride;        // between rows of y: directions * H
  Slices slices;
  int64_t* trace;  // see trace.cuh, or nullptr
  ForwardDirection direction[kMaxDirections];
};

struct BackwardDirection {
  const void* w_hh;      // [4H, H] T
  const void* gates;     // [N, 4H] T, as saved
  const void* c;         // [N, H] Acc, as saved
  const void* c0;        // [B, H] T, or nullptr for zeros
  const void* grad_y;    // [N, H] T, row stride grad_y_stride, or nullptr for zeros
  const void* grad_h_n;  // [B, H] T, or nullptr for zeros
  const void* grad_c_n;  // [B, H] T, or nullptr for zeros
  void* dgates;          // [N, 4H] T: gradient of the pre-activation gates; never `gates`
  void* dh0;             // [B, H] T, or nullptr where not wanted
  void* dc0;             // [B, H] T, or nullptr where not wanted
  void* exchange;   // plan C: exchange_bytes(), 16-byte aligned, all bits set before the launch
  int32_t reverse;  // as in the forward pass
};

struct BackwardParams {
  Steps steps;
  int64_t hidden;
  int64_t w_hh_stride;
  int64_t gates_stride;
  int64_t dgates_stride;
  int64_t c0_stride;          // between rows of c0
  int64_t grad_y_stride;      // between rows of grad_y
  int64_t grad_state_stride;  // between rows of grad_h_n and of grad_c_n
  Slices slices;
  int64_t* trace;  // see trace.cuh, or nullptr
  BackwardDirection direction[kMaxDirections];
};

// ---- plan D: the gates of one step, after a GEMM; every shape, projection too ----

struct GateForwardDirection {
  int64_t rows;         // live rows of the step
  const void* gates_x;  // [rows, 4H] T: the step's rows of the input projection
  const void* gates_h;  // [rows, 4H] T: W_hh h_prev, or nullptr if gates_x holds the sum
  const void* b_ih;     // [4H] T, or nullptr for zeros
  const void* b_hh;     // [4H] T, or nullptr for zeros
  void* c_carry;        // [rows, H] Acc contiguous: c of the step before, replaced by the new c
  void* h;              // [rows, H] T: the new h (y, or with projection what W_hr is applied to)
  void* h_carry;        // [rows, H] T contiguous: a second copy of h, or nullptr
  void* gates;          // [rows, 4H] T activated gates; may be gates_x or gates_h. Only if saving
  void* c;              // [rows, H] Acc contiguous. Only if saving
};

struct GateForwardParams {
  int64_t hidden;
  int64_t gates_x_stride;
  int64_t gates_h_stride;
  int64_t h_stride;
  int64_t gates_stride;
  GateForwardDirection direction[kMaxDirections];
};

struct GateBackwardDirection {
  int64_t rows;       // live rows of the step
  const void* dh_a;   // [rows, H] T: first part of the gradient of h, or nullptr
  const void* dh_b;   // [rows, H] T: second part (the recurrent one, say), or nullptr
  const void* gates;  // [rows, 4H] T
  const void* c;      // [rows, H] Acc: c of this step
  // c of the step before: rows below prev_rows are in c_prev (Acc, saved), the others began with
  // this step and have it in c0 (T, or nullptr for zeros). c0 points at row 0.
  const void* c_prev;
  const void* c0;
  int64_t prev_rows;
  void* dc_carry;  // [rows, H] Acc contiguous: gradient of c, replaced by that of c_prev
  void* dgates;    // [rows, 4H] T
};

struct GateBackwardParams {
  int64_t hidden;
  int64_t dh_a_stride;
  int64_t dh_b_stride;
  int64_t gates_stride;
  int64_t c0_stride;
  int64_t dgates_stride;
  GateBackwardDirection direction[kMaxDirections];
};

// ---- shapes that the planner, the launchers and the kernels must agree on ----

constexpr int kUnitTile = 8;       // hidden units per unit tile: the n of one mma
constexpr int kRowTile = 16;       // batch rows per row tile: the m of one mma
constexpr int kGates = 4;          // i f g o
constexpr int kTileBytes = 32;     // bytes of one row in a k tile: 16 16-bit, 8 float, 4 double
constexpr int kBlockBytes = 1024;  // weights of one unit tile and one k tile, all four gates

FUSED_LSTM_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
FUSED_LSTM_HOST_DEVICE constexpr int64_t unit_tile_count(int64_t hidden) {
  return ceil_div(hidden, kUnitTile);
}
FUSED_LSTM_HOST_DEVICE constexpr int64_t row_tile_count(int64_t batch) {
  return ceil_div(batch, kRowTile);
}
FUSED_LSTM_HOST_DEVICE constexpr int64_t k_tile_count(int64_t hidden, int64_t element_size) {
  return ceil_div(hidden * element_size, kTileBytes);
}

// Unit tiles that plans B and C share out: those of whole k tiles, so that every word of an operand
// has an owner.
FUSED_LSTM_HOST_DEVICE constexpr int64_t sliced_unit_tiles(int64_t hidden, int64_t element_size) {
  return ceil_div(k_tile_count(hidden, element_size) * (kTileBytes / element_size), kUnitTile);
}

// Operands of one row tile that an exchange keeps, for as many epochs; exchange.cuh says why these
// are enough. Plan C passes a fence of the whole GPU in every kGridFenceEvery-th step.
constexpr int kClusterRing = 4;
constexpr int kGridFenceEvery = 3;
constexpr int kGridRing = 2 * kGridFenceEvery + 2;

// Bytes of ForwardDirection::exchange (operands = 1: h) or BackwardDirection::exchange
// (operands = 4: the gradients of four gates): [kGridRing, row tiles * 16, operands, k tiles * 32
// bytes].
FUSED_LSTM_HOST_DEVICE constexpr int64_t exchange_bytes(int64_t batch, int64_t hidden,
                                                        int64_t element_size, int operands) {
  return kGridRing * row_tile_count(batch) * kRowTile * operands *
         k_tile_count(hidden, element_size) * kTileBytes;
}

// ---- what a build with FUSED_LSTM_CUDA_TRACE writes, see trace.cuh ----

constexpr int kTraceHead = 8;    // words before the stamps
constexpr int kTraceStamps = 6;  // of a step
constexpr int kTraceSteps = 256;

}  // namespace cuda
}  // namespace fused_lstm
