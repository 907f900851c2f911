// How the blocks of one group hand each other what the next step multiplies: h going forward, the
// gradients of the four gates going back. Plans B and C are one kernel with these two exchanges.
//
// An operand is [k tile] operand tiles (product.cuh); every row tile has one for even and one for
// odd epochs. Epoch e is what step e - 1 of the row tile produced (0: the initial h). Two buffers
// are enough: a block writes epoch e + 2 only after it has seen epoch e + 1 of all blocks, and they
// published that after they had read epoch e.
//
//   (constructor)  the whole block, with a barrier: what the block set up before is there after it
//   put      one thread stores one element of its own units
//   publish  the whole block: its units of this epoch are complete
//   wait     one warp: all units that its k tiles need are there
#pragma once

#include "layout.h"
#include "product.cuh"

namespace fused_lstm {
namespace cuda {

// Plan C: through global memory (L2), with one counter per row tile and slice: 1 + the last epoch
// published. Deadlock free as long as all blocks of a group are resident together, since every
// block handles row tiles and epochs in the same order.
template <class Math, int kOperands>
class GridExchange {
 public:
  using T = typename Math::Element;
  using Load = LoadExchange;
  static constexpr bool kCluster = false;

  // Units of one block: units_per_slice; the warp's k tiles: [first, first + count).
  __device__ __forceinline__ GridExchange(void* exchange, uint32_t* flags, char* /*shared*/,
                                          const Slices& slices, int64_t slice, int64_t hidden,
                                          int64_t batch, int first, int count)
      : exchange_(static_cast<char*>(exchange)),
        flags_(flags),
        slices_(slices.slices),
        slice_(slice),
        gate_bytes_(operand_bytes(hidden, sizeof(T), 1)),
        row_tiles_(row_tile_count(batch)) {
    const int64_t units = slices.unit_tiles * kUnitTile;
    const int64_t end = min64(static_cast<int64_t>(first + count) * kTileUnits<Math>, hidden);
    first_needed_ = static_cast<int>(first * kTileUnits<Math> / units);
    end_needed_ = count > 0 ? static_cast<int>((end - 1) / units) + 1 : 0;
    hw::sync_block();
  }

  __device__ __forceinline__ int64_t gate_bytes() const { return gate_bytes_; }
  __device__ __forceinline__ char* operand(int64_t row_tile, int /*local*/, int64_t epoch) const {
    return exchange_ + ((epoch & 1) * row_tiles_ + row_tile) * kOperands * gate_bytes_;
  }
  __device__ __forceinline__ void put(T* to, T value) const { hw::store_exchange(to, value); }
  __device__ __forceinline__ void publish(int64_t row_tile, int /*local*/, int64_t epoch) {
    hw::sync_block();
    if (hw::thread() == 0) {
      hw::release_flag(flags_ + row_tile * slices_ + slice_, static_cast<uint32_t>(epoch + 1));
    }
  }
  __device__ __forceinline__ void wait(int64_t row_tile, int64_t epoch) {
    for (int s = first_needed_ + hw::lane(); s < end_needed_; s += 32) {
      hw::wait_flag(flags_ + row_tile * slices_ + s, static_cast<uint32_t>(epoch + 1));
    }
    hw::sync_warp();
  }
  __device__ __forceinline__ void finish() const {}

 private:
  static __device__ __forceinline__ int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

  char* exchange_;
  uint32_t* flags_;
  int64_t slices_, slice_, gate_bytes_, row_tiles_;
  int first_needed_, end_needed_;
};

// Plan B: through the shared memory of the cluster's blocks (compute capability 9.0). Every block
// keeps the whole operand; publishing copies the block's own units to all others and arrives at the
// cluster's barrier, which is all that waiting waits for.
template <class Math, int kOperands>
class ClusterExchange {
 public:
  using T = typename Math::Element;
  using Load = LoadShared;
  static constexpr bool kCluster = true;

  __device__ __forceinline__ ClusterExchange(void* /*exchange*/, uint32_t* /*flags*/, char* shared,
                                             const Slices& slices, int64_t slice, int64_t hidden,
                                             int64_t batch, int /*first*/, int /*count*/)
      : shared_(shared),
        slices_(static_cast<uint32_t>(slices.slices)),
        first_unit_tile_(slice * slices.unit_tiles),
        unit_tiles_(slices.unit_tiles),
        gate_bytes_(operand_bytes(hidden, sizeof(T), 1)) {
    const int64_t row_tiles = ceil_div(row_tile_count(batch), slices.groups);
    const int64_t words = row_tiles * 2 * kOperands * gate_bytes_ / 8;
    for (int64_t i = hw::thread(); i < words; i += hw::threads()) {
      reinterpret_cast<uint64_t*>(shared_)[i] = 0;
    }
    arrive();
    settle();  // nobody stores here before this block has cleared its buffers
  }

  __device__ __forceinline__ int64_t gate_bytes() const { return gate_bytes_; }
  __device__ __forceinline__ char* operand(int64_t /*row_tile*/, int local, int64_t epoch) const {
    return shared_ + (local * 2 + (epoch & 1)) * kOperands * gate_bytes_;
  }
  __device__ __forceinline__ void put(T* to, T value) const { *to = value; }
  __device__ __forceinline__ void publish(int64_t row_tile, int local, int64_t epoch) {
    settle();
    hw::sync_block();
    char* from = operand(row_tile, local, epoch);
    for (int i = hw::thread(); i < unit_tiles_ * kOperands * kWords; i += hw::threads()) {
      const int64_t unit_tile = first_unit_tile_ + i / (kOperands * kWords);
      const int64_t offset = word_offset(unit_tile, i % kWords);
      if (offset >= gate_bytes_) continue;  // units beyond the last k tile
      char* word = from + i / kWords % kOperands * gate_bytes_ + offset;
      const uint64_t value = *reinterpret_cast<const uint64_t*>(word);
      for (uint32_t rank = 0; rank < slices_; ++rank) {
        if (rank != hw::cluster_rank()) hw::store_cluster_8(word, rank, value);
      }
    }
    arrive();
  }
  __device__ __forceinline__ void wait(int64_t /*row_tile*/, int64_t /*epoch*/) { settle(); }
  // No block leaves while another one may still store to it.
  __device__ __forceinline__ void finish() { settle(); }

 private:
  // 8-byte words of one unit tile in one operand.
  static constexpr int kWords = kRowTile * kUnitTile * static_cast<int>(sizeof(T)) / 8;

  // Of 16-bit types a unit tile is half a k tile: the first or second 8 bytes of every 16.
  static __device__ __forceinline__ int64_t word_offset(int64_t unit_tile, int word) {
    if (sizeof(T) == 2) return unit_tile / 2 * kOperandBytes + word * 16 + unit_tile % 2 * 8;
    return (unit_tile * kWords + word) * 8;
  }
  // Arrivals and waits of the cluster barrier must alternate.
  __device__ __forceinline__ void arrive() {
    hw::cluster_arrive();
    arrived_ = true;
  }
  __device__ __forceinline__ void settle() {
    if (arrived_) hw::cluster_wait();
    arrived_ = false;
  }

  char* shared_;
  uint32_t slices_;
  int64_t first_unit_tile_;
  int unit_tiles_;
  int64_t gate_bytes_;
  bool arrived_ = false;
};

}  // namespace cuda
}  // namespace fused_lstm
