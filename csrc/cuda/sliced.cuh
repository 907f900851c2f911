// Plans B and C, what forward and backward share: which part of the layer a block owns.
//
// The hidden units of a direction are cut into slices, one per block; a block keeps the recurrent
// weights of its units in registers and shared memory for the whole sequence. A group of `slices`
// blocks handles every `groups`-th row tile. For each step and row tile a block
//   1. reads what the other blocks have stored (exchange.cuh) and multiplies: its warps share the
//      k tiles, and where kUnitParts > 1 the unit tiles,
//   2. adds the warps' partial sums in a fixed order (partials.cuh) and finishes the cells, which
//      its threads share out,
//   3. stores its own units for the others, and asks for what comes next before it writes results.
//
// Launch: grid (slices * groups, directions), kThreads threads, SlicedLayout::bytes of shared
// memory. Plan C: all blocks resident together. Plan B: clusters of `slices` blocks along x.
#pragma once

#include "exchange.cuh"
#include "partials.cuh"
#include "walk.cuh"

namespace fused_lstm {
namespace cuda {

// One product: step `step` of the block's row tile number `local`.
struct Turn {
  int local;
  int64_t step;
  bool odd;  // of all products
};

// What a variant fixes at compile time; see variants.h.
template <int kUnitTiles_, int kUnitParts_, int kRegTiles_, int kThreads_>
struct SlicedShape {
  static constexpr int kUnitTiles = kUnitTiles_, kUnitParts = kUnitParts_;
  static constexpr int kRegTiles = kRegTiles_, kThreads = kThreads_;
};

template <class Math, class Shape, class Exchange, bool kTransposed>
struct SlicedBlock {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  static constexpr int kOperands = kTransposed ? kGates : 1;
  static constexpr int kThreads = Shape::kThreads, kUnitTiles = Shape::kUnitTiles;
  static constexpr int kWarpTiles = kUnitTiles / Shape::kUnitParts;  // unit tiles of a warp
  static constexpr int kWarps = kThreads / 32 / Shape::kUnitParts;   // that share out k
  static constexpr int kUnits = kUnitTiles * kUnitTile;
  static constexpr int kBlockCells = kRowTile * kUnits;
  // Cells of a thread: its unit in rows kThreads / kUnits apart. Whole warps have them or do not.
  static constexpr int kOwn = kBlockCells > kThreads ? kBlockCells / kThreads : 1;
  static_assert(kThreads % (32 * Shape::kUnitParts) == 0 && kUnitTiles % Shape::kUnitParts == 0);
  static_assert(kBlockCells % 32 == 0 && kThreads % kUnits == 0 &&
                (kBlockCells < kThreads || kBlockCells % kThreads == 0));
  using Weights = WarpWeights<Math, kWarpTiles, Shape::kRegTiles, kTransposed>;
  using Operands = PolledOperands<Math, typename Exchange::Load, kOperands>;
  using Sums = PartialSums<Acc, kUnitTiles, kTransposed>;

  int64_t slice, group, groups, hidden;
  int row_tiles;    // of this block
  bool has_cells;   // this thread finishes cells of every row tile
  int64_t unit;     // their hidden unit
  bool unit_valid;  // the unit exists
  char* shared_operand;
  Weights weights;

  // The exchange, set up next, has the barrier that must follow.
  __device__ __forceinline__ SlicedBlock(const Slices& slices, const Steps& steps, const T* w_hh,
                                         int64_t stride, int64_t hidden_, int64_t* trace)
      : slice(hw::block_x() % slices.slices),
        group(hw::block_x() / slices.slices),
        groups(slices.groups),
        hidden(hidden_),
        row_tiles(static_cast<int>(ceil_div(row_tile_count(steps.batch) - group, slices.groups))),
        batch_(steps.batch),
        trace_(trace) {
    const SlicedLayout layout(slices, hidden, steps.batch, sizeof(T), sizeof(Acc), kOperands,
                              Shape::kRegTiles, Exchange::kCluster);
    char* shared = hw::shared_memory();
    partials_ = reinterpret_cast<Acc*>(shared + layout.partials);
    state_ = reinterpret_cast<Acc*>(shared + layout.state);
    lengths_ = reinterpret_cast<int64_t*>(shared + layout.lengths);
    shared_operand = shared + layout.operand;

    has_cells = hw::thread() < kBlockCells;
    unit = slice * kUnits + hw::thread() % kUnits;
    unit_valid = has_cells && unit < hidden;

    const int warp_k_tiles = static_cast<int>(layout.warp_k_tiles);
    const int left = static_cast<int>(k_tile_count(hidden, sizeof(T))) - k_warp() * warp_k_tiles;
    weights.first = k_warp() * warp_k_tiles;
    weights.count = left < 0 ? 0 : left < warp_k_tiles ? left : warp_k_tiles;
    weights.shared = shared + hw::warp() * shared_k_tiles(warp_k_tiles, Shape::kRegTiles) *
                                  kWarpTiles * kBlockBytes;
    weights.load(w_hh, stride, hidden, slice * kUnits + first_tile() * kUnitTile);

    for (int i = hw::thread(); i < row_tiles * kRowTile; i += hw::threads()) {
      lengths_[i] = row_length(steps, row0(i / kRowTile) + i % kRowTile);
    }
  }

  __device__ __forceinline__ int64_t row_tile(int local) const { return group + local * groups; }
  __device__ __forceinline__ int64_t row0(int local) const { return row_tile(local) * kRowTile; }
  // Steps of the row tile: those of its first row, the longest.
  __device__ __forceinline__ int64_t steps(int local) const { return lengths_[local * kRowTile]; }

  // ---- the order of products: all row tiles of a step, then the next step ----
  //
  // A row tile has `more` turns than steps. Lengths never grow from row to row, so the row tiles
  // that have a step come first.

  __device__ __forceinline__ bool has(const Turn& turn, int more) const {
    return turn.local < row_tiles && turn.step < steps(turn.local) + more;
  }
  __device__ __forceinline__ Turn after(const Turn& turn, int more) const {
    const Turn next{turn.local + 1, turn.step, !turn.odd};
    return has(next, more) ? next : Turn{0, turn.step + 1, !turn.odd};
  }

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

  // ---- one turn ----

  // Asks for the operand of a turn. With several row tiles, its blocks have stored it a whole round
  // ago; with one, just now.
  __device__ __forceinline__ void ask(Operands& operands, const Exchange& exchange,
                                      const Turn& turn) const {
    const char* from = exchange.operand(row_tile(turn.local), turn.local, turn.step);
    operands.begin(from + static_cast<int64_t>(weights.first) * kOperandBytes,
                   exchange.gate_bytes(), weights.count, row_tiles > 1, Watch(trace_, turn.step));
  }

  // The whole block: recurrent product of one row tile; sums(turn, i) is then there for the cells.
  // One barrier: the other half of the partial sums was read before the barrier of the last turn.
  __device__ __forceinline__ void multiply(Operands& operands, const Exchange& exchange,
                                           const Turn& turn) const {
    stamp(trace_, turn.step, kBegun);
    typename Weights::Sums sum = {};
    weights.multiply(sum, operands);
    stamp(trace_, turn.step, kMultiplied);
    exchange.fence(turn.step);
    stamp(trace_, turn.step, kFenced);
    const Sums to = partials(turn);
#pragma unroll
    for (int u = 0; u < kWarpTiles; ++u) to.put(k_warp(), first_tile() + u, sum[u]);
    hw::sync_block();
  }
  __device__ __forceinline__ typename Sums::Cell sums(const Turn& turn, int i) const {
    return partials(turn).template get<kWarps>(cell_row(i), hw::thread() % kUnits);
  }

  // Empties what `turn` was the last to need.
  __device__ __forceinline__ void retire(const Exchange& exchange, const Turn& turn) const {
    using Word = typename Exchange::Word;
    const auto own = [&](char* retired, auto empty) {
      if (!has_cells) return;
#pragma unroll
      for (int i = 0; i < kOwn * kOperands; ++i) {
        char* operand = retired + i / kOwn * exchange.gate_bytes();
        Word* word = own_word<Math, Word>(operand, cell_row(i % kOwn), unit, exchange.gate_bytes());
        if (word) empty(word);
      }
    };
    exchange.retire(row_tile(turn.local), turn.local, turn.step, own);
  }

 private:
  __device__ __forceinline__ int k_warp() const { return hw::warp() % kWarps; }
  // Of the unit tiles of this warp.
  __device__ __forceinline__ int first_tile() const { return hw::warp() / kWarps * kWarpTiles; }
  __device__ __forceinline__ Sums partials(const Turn& turn) const {
    return Sums(partials_ + (turn.odd ? kWarps * kUnitTiles * Sums::kElements : 0));
  }

  int64_t batch_;
  int64_t* trace_;
  Acc* partials_;     // [2][k warp][unit tile] of PartialSums
  Acc* state_;        // [row tile][2][cell]
  int64_t* lengths_;  // [row tile][row]
};

}  // namespace cuda
}  // namespace fused_lstm
