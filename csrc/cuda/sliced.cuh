// Plans B and C, what forward and backward share: which part of the layer a block owns.
//
// The hidden units of a direction are cut into slices, one per block; a block keeps the recurrent
// weights of its units in registers and shared memory for the whole sequence. A group of `slices`
// blocks handles every `groups`-th row tile. For each step and row tile a block
//   1. waits until the other blocks have published what the product reads (exchange.cuh),
//   2. multiplies: its warps share the k tiles, each for all units of the block,
//   3. adds the warps' partial sums in a fixed order and finishes the cells, one thread each,
//   4. publishes its own units.
// With several row tiles, one tile's exchange runs while the others are computed.
//
// Launch: grid (slices * groups, directions), 32 * k_warps >= 128 * unit tiles threads,
// SlicedLayout::bytes of shared memory. Plan C: all blocks resident together. Plan B: clusters of
// `slices` blocks along x.
#pragma once

#include "exchange.cuh"
#include "walk.cuh"

namespace fused_lstm {
namespace cuda {

template <class Math, int kUnitTiles, int kRegTiles, bool kTransposed, bool kCluster>
struct SlicedBlock {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  static constexpr int kOperands = kTransposed ? kGates : 1;
  static constexpr int kSums = kTransposed ? 1 : kGates;  // partial sums per cell
  static constexpr int kBlockCells = kUnitTiles * kCells;

  int64_t slice, group, groups, hidden;
  int row_tiles;    // of this block
  bool has_cell;    // this thread finishes a cell of every row tile
  int cell_row;     // its row in the row tile
  int64_t unit;     // its hidden unit
  bool unit_valid;  // the unit exists
  char* shared_operand;
  WarpWeights<Math, kUnitTiles, kRegTiles, kTransposed> weights;

  // The exchange, set up next, has the barrier that must follow.
  __device__ __forceinline__ SlicedBlock(const Slices& slices, const Steps& steps, const T* w_hh,
                                         int64_t stride, int64_t hidden_)
      : slice(hw::block_x() % slices.slices),
        group(hw::block_x() / slices.slices),
        groups(slices.groups),
        hidden(hidden_),
        row_tiles(static_cast<int>(ceil_div(row_tile_count(steps.batch) - group, slices.groups))) {
    const SlicedLayout layout(slices, hidden, steps.batch, sizeof(T), sizeof(Acc), kOperands,
                              kRegTiles, kCluster);
    char* shared = hw::shared_memory();
    partials_ = reinterpret_cast<Acc*>(shared + layout.partials);
    state_ = reinterpret_cast<Acc*>(shared + layout.state);
    lengths_ = reinterpret_cast<int64_t*>(shared + layout.lengths);
    shared_operand = shared + layout.operand;

    constexpr int kUnits = kUnitTiles * kUnitTile;
    has_cell = hw::thread() < kBlockCells;
    cell_row = hw::thread() / kUnits;
    unit = slice * kUnits + hw::thread() % kUnits;
    unit_valid = has_cell && unit < hidden;

    const int warp_k_tiles = static_cast<int>(layout.warp_k_tiles);
    const int left = static_cast<int>(k_tile_count(hidden, sizeof(T))) - hw::warp() * warp_k_tiles;
    weights.first = hw::warp() * warp_k_tiles;
    weights.count = left < 0 ? 0 : left < warp_k_tiles ? left : warp_k_tiles;
    weights.shared =
        shared + hw::warp() * shared_k_tiles(warp_k_tiles, kRegTiles) * kUnitTiles * kBlockBytes;
    weights.load(w_hh, stride, hidden, slice * kUnits);

    for (int i = hw::thread(); i < row_tiles * kRowTile; i += hw::threads()) {
      lengths_[i] = row_length(steps, row0(i / kRowTile) + i % kRowTile);
    }
  }

  __device__ __forceinline__ int64_t row_tile(int local) const { return group + local * groups; }
  __device__ __forceinline__ int64_t row0(int local) const { return row_tile(local) * kRowTile; }
  // Steps of the row tile: those of its first row, the longest.
  __device__ __forceinline__ int64_t steps(int local) const { return lengths_[local * kRowTile]; }
  // Steps of the row of this thread's cell.
  __device__ __forceinline__ int64_t length(int local) const {
    return lengths_[local * kRowTile + cell_row];
  }
  // Value `which` (0 or 1) that this thread keeps for its cell of a row tile.
  __device__ __forceinline__ Acc& state(int local, int which) const {
    return state_[(local * 2 + which) * kBlockCells + hw::thread()];
  }

  // The whole block: recurrent product of one row tile; sum(gate) is then there for the cells.
  template <class Exchange>
  __device__ __forceinline__ void multiply(const Exchange& exchange, const char* operand) const {
    Acc sum[kUnitTiles][kGates][4] = {};
    weights.multiply(sum, operand, exchange.gate_bytes(), typename Exchange::Load());
    Acc* to = partials_ + hw::warp() * kUnitTiles * kSums * kCells;
#pragma unroll
    for (int u = 0; u < kUnitTiles; ++u) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Acc* cell = to + u * kSums * kCells + cuda::cell_row(e) * kUnitTile + cell_unit(e);
        if (kTransposed) {
          cell[0] = sum[u][0][e] + sum[u][1][e] + (sum[u][2][e] + sum[u][3][e]);
        } else {
#pragma unroll
          for (int gate = 0; gate < kGates; ++gate) cell[gate * kCells] = sum[u][gate][e];
        }
      }
    }
    hw::sync_block();
  }

  __device__ __forceinline__ Acc sum(int gate) const {
    const int in_block = hw::thread() % (kUnitTiles * kUnitTile);
    const Acc* cell = partials_ + (in_block / kUnitTile * kSums + gate) * kCells +
                      cell_row * kUnitTile + in_block % kUnitTile;
    Acc total = 0;
    for (int warp = 0; warp < hw::threads() / 32; ++warp) {
      total += cell[warp * kUnitTiles * kSums * kCells];
    }
    return total;
  }

 private:
  Acc* partials_;     // [warp][unit tile][kSums][row][unit]
  Acc* state_;        // [row tile][2][cell]
  int64_t* lengths_;  // [row tile][row]
};

}  // namespace cuda
}  // namespace fused_lstm
