// Where a warp's product takes its operand tiles from: shared memory that a barrier has filled, or
// memory that other blocks fill word by word, which is polled.
//
// A source gives `wait(slot, j)`, after which tile j is there, `operand(slot, j, gate)`, and
// `used(slot, j)`. slot = j % kTiles is a constant where the loop over j is unrolled: what is in
// flight lies in registers.
#pragma once

#include "tile.cuh"
#include "trace.cuh"

namespace fused_lstm {
namespace cuda {

// Plan A: each tile is read when it is used, which takes the fewest registers.
template <class Math, int kOperands>
struct SharedOperands {
  using Operand = typename Tile<Math>::Operand;
  static constexpr int kTiles = 1;
  const char* operands;  // k tile 0 of gate 0
  int64_t gate_bytes;    // to the same k tile of the next gate

  __device__ __forceinline__ void wait(int, int) const {}
  __device__ __forceinline__ Operand operand(int, int j, int gate) const {
    Operand a;
#pragma unroll
    for (int i = 0; i < Tile<Math>::kOperandWords; ++i) {
      load_16(a.word[i],
              operands + j * kOperandBytes + gate * gate_bytes + Tile<Math>::word_offset(i));
    }
    return a;
  }
  __device__ __forceinline__ void used(int, int) const {}
};

// Plans B and C: tiles whose words are empty, all bits set, until their owner has stored them. Up
// to kTiles k tiles are in flight. They are waited for in groups of kGroup: one vote of the warp
// for each, and a lane asks again only for its own words that were missing.
//
// While a warp waits it asks for one group: that all blocks ask for everything again and again
// would keep L2 busy with nothing. Once the group has come, the others have or are about to, and
// all in flight are asked for at once.
template <class Math, class Load, int kOperands>
class PolledOperands {
  using Warp = Tile<Math>;
  static constexpr int kWords = kOperands * Warp::kOperandWords;  // of a k tile, per lane
  static constexpr int at_least_one(int n) { return n > 0 ? n : 1; }

 public:
  using Operand = typename Warp::Operand;
  static constexpr int kTiles = at_least_one(Load::kInFlight / kWords);
  static constexpr int kGroup = at_least_one(Load::kSpin / kWords);
  static_assert(kTiles % kGroup == 0, "slots of a group lie side by side");

  // Begins with `count` k tiles from `operands`. `all`: they have probably been stored by now, so
  // that it pays to ask for all that may be in flight.
  __device__ __forceinline__ void begin(const char* operands, int64_t gate_bytes, int count,
                                        bool all, const Watch& watch) {
    operands_ = operands;
    gate_bytes_ = gate_bytes;
    count_ = count;
    watch_ = watch;
#pragma unroll
    for (int slot = 0; slot < kTiles; ++slot) {
      empty(slot);
      if (all || slot < kGroup) ask(slot, slot);
    }
  }

  // The whole warp. The order of tiles never depends on which came first.
  __device__ __forceinline__ void wait(int slot, int j) {
    if (slot % kGroup != 0) return;
    bool waited = false;
    while (hw::any_lane(missing_group(slot, j))) {
      waited = true;
#pragma unroll
      for (int i = 0; i < kGroup; ++i) ask(slot + i, j + i);
      watch_.spin(j);
    }
    if (!waited) return;
#pragma unroll
    for (int i = kGroup; i < kTiles; ++i) ask((slot + i) % kTiles, j + i);
  }
  __device__ __forceinline__ const Operand& operand(int slot, int, int gate) const {
    return a_[slot][gate];
  }
  __device__ __forceinline__ void used(int slot, int j) {
    if (j + kTiles >= count_) return;
    empty(slot);
    ask(slot, j + kTiles);
  }

 private:
  __device__ __forceinline__ void empty(int slot) {
#pragma unroll
    for (int g = 0; g < kOperands; ++g) {
#pragma unroll
      for (int i = 0; i < Warp::kOperandWords; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) a_[slot][g].word[i][k] = Load::kEmpty;
      }
    }
  }
  // Loads what this lane misses of tile j.
  __device__ __forceinline__ void ask(int slot, int j) {
    if (j >= count_) return;
#pragma unroll
    for (int g = 0; g < kOperands; ++g) {
      const char* tile = operands_ + j * kOperandBytes + g * gate_bytes_;
#pragma unroll
      for (int i = 0; i < Warp::kOperandWords; ++i) {
        uint32_t (&word)[4] = a_[slot][g].word[i];
        if (Load::missing(word)) Load::load(word, tile + Warp::word_offset(i));
      }
    }
  }
  __device__ __forceinline__ bool missing_group(int slot, int j) const {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kGroup; ++i) any |= j + i < count_ && missing(slot + i);
    return any;
  }
  __device__ __forceinline__ bool missing(int slot) const {
    bool any = false;
#pragma unroll
    for (int g = 0; g < kOperands; ++g) {
#pragma unroll
      for (int i = 0; i < Warp::kOperandWords; ++i) any |= Load::missing(a_[slot][g].word[i]);
    }
    return any;
  }

  Operand a_[kTiles][kOperands];
  const char* operands_;
  int64_t gate_bytes_;
  int count_;
  Watch watch_;
};

}  // namespace cuda
}  // namespace fused_lstm
