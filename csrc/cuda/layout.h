// How the persistent kernels divide a block's shared memory; the planner asks the same functions
// what fits. Every part is a multiple of 16 bytes.
#pragma once

#include "params.h"

namespace fused_lstm {
namespace cuda {

constexpr int kCells = kRowTile * kUnitTile;  // of one row tile and one unit tile

// k tiles of a warp's weights that shared memory must hold.
FUSED_LSTM_HOST_DEVICE constexpr int64_t shared_k_tiles(int64_t warp_k_tiles, int reg_tiles) {
  return warp_k_tiles > reg_tiles ? warp_k_tiles - reg_tiles : 0;
}

// operands: 1 forward (h), 4 backward (the gradients of four gates).
FUSED_LSTM_HOST_DEVICE constexpr int64_t operand_bytes(int64_t hidden, int64_t element_size,
                                                       int operands) {
  return k_tile_count(hidden, element_size) * kRowTile * kTileBytes * operands;
}

// Plan A: [warp][k tile] weight blocks, then the operand of even and of odd steps.
struct BlockLayout {
  int64_t operand;  // byte at which the operands begin
  int64_t bytes;

  FUSED_LSTM_HOST_DEVICE constexpr BlockLayout(int64_t hidden, int64_t element_size, int operands,
                                               int reg_tiles)
      : operand(unit_tile_count(hidden) *
                shared_k_tiles(k_tile_count(hidden, element_size), reg_tiles) * kBlockBytes),
        bytes(operand + 2 * operand_bytes(hidden, element_size, operands)) {}
};

// Sums that one warp hands the block per unit tile of its part. Forward: the four gates of a cell
// side by side. Backward: one sum per cell; the unit tiles of a row lie 32 / unit_tiles elements
// further apart than their cells need, so that a warp, which reads 32 / (8 * unit_tiles) rows of
// all of them at once, finds them in 32 different banks.
FUSED_LSTM_HOST_DEVICE constexpr int partial_elements(int unit_tiles, int operands) {
  return operands == 1 ? kGates * kCells : kCells + 32 / unit_tiles;
}

// Plans B and C: [warp][k tile][unit tile] weight blocks; of even and of odd products, [k
// warp][unit tile] partial sums; of every row tile of the block, two values kept per cell, the
// rows' lengths, and in plan B the ring of operands.
struct SlicedLayout {
  int64_t warp_k_tiles;  // k tiles of a warp, the last one perhaps fewer
  int64_t row_tiles;     // most row tiles a block has
  int64_t partials, state, lengths, operand, bytes;

  FUSED_LSTM_HOST_DEVICE constexpr SlicedLayout(const Slices& s, int64_t hidden, int64_t batch,
                                                int64_t element_size, int64_t acc_size,
                                                int operands, int reg_tiles, bool cluster)
      : warp_k_tiles(ceil_div(k_tile_count(hidden, element_size), s.k_warps)),
        row_tiles(ceil_div(row_tile_count(batch), s.groups)),
        partials(s.k_warps * shared_k_tiles(warp_k_tiles, reg_tiles) * s.unit_tiles * kBlockBytes),
        state(partials +
              2 * s.k_warps * s.unit_tiles * partial_elements(s.unit_tiles, operands) * acc_size),
        lengths(state + row_tiles * 2 * s.unit_tiles * kCells * acc_size),
        operand(lengths + row_tiles * kRowTile * static_cast<int64_t>(sizeof(int64_t))),
        bytes(operand +
              (cluster ? row_tiles * kClusterRing * operand_bytes(hidden, element_size, operands)
                       : 0)) {}
};

}  // namespace cuda
}  // namespace fused_lstm
