// Plans B and C, what forward and backward share: which part of the layer a block owns.
//
// The hidden units of a direction are cut into slices, one per block; a block keeps the recurrent
// weights of its units in registers and shared memory for the whole sequence. A group of `slices`
// blocks handles every `groups`-th row tile. For each step and row tile a block
//   1. reads what the other blocks have stored (exchange.cuh) and multiplies: its warps share the
//      k tiles, each for all units of the block,
//   2. adds the warps' partial sums in a fixed order and finishes the cells, which its threads
//      share out,
//   3. stores its own units for the others.
//
// Launch: grid (slices * groups, directions), kThreads threads, SlicedLayout::bytes of shared
// memory. Plan C: all blocks resident together. Plan B: clusters of `slices` blocks along x.
#pragma once

#include "exchange.cuh"
#include "walk.cuh"

namespace fused_lstm {
namespace cuda {

template <class Math, int kUnitTiles, int kRegTiles, int kThreads, bool kTransposed, bool kCluster>
struct SlicedBlock {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  using Weights = WarpWeights<Math, kUnitTiles, kRegTiles, kTransposed>;
  static constexpr int kOperands = kTransposed ? kGates : 1;
  static constexpr int kSums = kTransposed ? 1 : kGates;  // partial sums per cell
  static constexpr int kUnits = kUnitTiles * kUnitTile;
  static constexpr int kBlockCells = kRowTile * kUnits;
  static constexpr int kWarps = kThreads / 32;
  // Cells of a thread: its unit in rows kThreads / kUnits apart. Whole warps have them or do not.
  static constexpr int kOwn = kBlockCells > kThreads ? kBlockCells / kThreads : 1;
  static_assert(kThreads % 32 == 0 && kBlockCells % 32 == 0 && kThreads % kUnits == 0 &&
                (kBlockCells < kThreads || kBlockCells % kThreads == 0));

  int64_t slice, group, groups, hidden;
  int row_tiles;    // of this block
  bool has_cells;   // this thread finishes cells of every row tile
  int64_t unit;     // their hidden unit
  bool unit_valid;  // the unit exists
  char* shared_operand;
  Weights weights;

  // The exchange, set up next, has the barrier that must follow.
  __device__ __forceinline__ SlicedBlock(const Slices& slices, const Steps& steps, const T* w_hh,
                                         int64_t stride, int64_t hidden_)
      : slice(hw::block_x() % slices.slices),
        group(hw::block_x() / slices.slices),
        groups(slices.groups),
        hidden(hidden_),
        row_tiles(static_cast<int>(ceil_div(row_tile_count(steps.batch) - group, slices.groups))),
        batch_(steps.batch) {
    const SlicedLayout layout(slices, hidden, steps.batch, sizeof(T), sizeof(Acc), kOperands,
                              kRegTiles, kCluster);
    char* shared = hw::shared_memory();
    partials_ = reinterpret_cast<Acc*>(shared + layout.partials);
    state_ = reinterpret_cast<Acc*>(shared + layout.state);
    lengths_ = reinterpret_cast<int64_t*>(shared + layout.lengths);
    shared_operand = shared + layout.operand;

    has_cells = hw::thread() < kBlockCells;
    unit = slice * kUnits + hw::thread() % kUnits;
    unit_valid = has_cells && unit < hidden;

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

  // ---- cell i of this thread, i < kOwn ----

  // Its row in the row tile; within the row tile also for threads without cells.
  __device__ __forceinline__ int cell_row(int i) const {
    return (hw::thread() + i * kThreads) % kBlockCells / kUnits;
  }
  __device__ __forceinline__ int64_t row(int local, int i) const {
    return row0(local) + cell_row(i);
  }
  __device__ __forceinline__ bool valid(int local, int i) const {
    return unit_valid && row(local, i) < batch_;
  }
  // Steps of its row.
  __device__ __forceinline__ int64_t length(int local, int i) const {
    return lengths_[local * kRowTile + cell_row(i)];
  }
  // Value `which` (0 or 1) that is kept for it.
  __device__ __forceinline__ Acc& state(int local, int i, int which) const {
    return state_[(local * 2 + which) * kBlockCells + hw::thread() + i * kThreads];
  }
  // After step `step` has read its epoch: empties what was the epoch before.
  template <class Exchange>
  __device__ __forceinline__ void retire(const Exchange& exchange, int local, int64_t step) const {
    using Word = typename Exchange::Word;
    exchange.retire(exchange.operand(row_tile(local), local, step + kRing - 1), [&](char* retired,
                                                                                    auto empty) {
      if (!has_cells) return;
#pragma unroll
      for (int i = 0; i < kOwn * kOperands; ++i) {
        char* operand = retired + i / kOwn * exchange.gate_bytes();
        Word* word = own_word<Math, Word>(operand, cell_row(i % kOwn), unit, exchange.gate_bytes());
        if (word) empty(word);
      }
    });
  }

  // The whole block: recurrent product of one row tile; sum(i, gate) is then there for the cells.
  template <class Exchange>
  __device__ __forceinline__ void multiply(const Exchange& exchange, const char* operand) const {
    typename Weights::Sums sum = {};
    weights.multiply(sum, operand, exchange.gate_bytes(), typename Exchange::Load());
    hw::sync_block();  // the sums of the product before have been read
    Acc* to = partials_ + hw::warp() * kUnitTiles * kSums * kCells;
#pragma unroll
    for (int u = 0; u < kUnitTiles; ++u) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        Acc* cell = to + u * kSums * kCells + cuda::cell_row(e) * kUnitTile + cell_unit(e);
        if constexpr (kTransposed) {
          Acc total = sum[u][0][e];
#pragma unroll
          for (int chain = 1; chain < Weights::kChains; ++chain) total += sum[u][chain][e];
          *cell = total;
        } else {
#pragma unroll
          for (int gate = 0; gate < kGates; ++gate) cell[gate * kCells] = sum[u][gate][e];
        }
      }
    }
    hw::sync_block();
  }

  __device__ __forceinline__ Acc sum(int i, int gate) const {
    const int in_block = hw::thread() % kUnits;
    const Acc* cell = partials_ + (in_block / kUnitTile * kSums + gate) * kCells +
                      cell_row(i) * kUnitTile + in_block % kUnitTile;
    Acc total = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      total += cell[warp * kUnitTiles * kSums * kCells];
    }
    return total;
  }

 private:
  int64_t batch_;
  Acc* partials_;     // [warp][unit tile][kSums][row][unit]
  Acc* state_;        // [row tile][2][cell]
  int64_t* lengths_;  // [row tile][row]
};

}  // namespace cuda
}  // namespace fused_lstm
