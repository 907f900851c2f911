// How the blocks of one group hand each other what the next step multiplies: h going forward, the
// gradients of the four gates going back. Plans B and C are one kernel with these two exchanges.
//
// An operand is [k tile] operand tiles (product.cuh). Epoch e is what step e - 1 of the row tile
// produced (0: the initial h). A word is empty, all bits set, until the one thread that owns it
// stores a value there; so the readers poll the very words that they multiply, and between a store
// and the product that needs it there is neither a flag nor a barrier nor a fence.
//
// Epoch e lies in operand e % kRing of the row tile. In step e a block
//   1. reads epoch e and knows, after a barrier, that all its warps have;
//   2. stores its own units of epoch e + 1;
//   3. empties (retires) epoch e - 1, which no block reads any more: each has stored epoch e, and
//      had read epoch e - 1 before.
// What step e empties holds epoch e + kRing - 1 next; below it says why that is late enough.
#pragma once

#include "layout.h"
#include "product.cuh"

namespace fused_lstm {
namespace cuda {

// What one store carries: two 16-bit elements of neighbouring units, or one wider element.
template <typename T>
struct ExchangeWord {
  using Type = uint32_t;
};
template <>
struct ExchangeWord<double> {
  using Type = uint64_t;
};

// Polled loads of 16 bytes: Scope is Gpu or Cluster.
template <typename T, class Scope>
struct LoadExchange {
  // Through L2 a load takes some 300 cycles, and requests in flight share them.
  static constexpr int kInFlight = Scope::kInFlight;
  static constexpr bool kPolls = true;

  __device__ __forceinline__ void operator()(uint32_t (&to)[4], const char* from) const {
    uint64_t word[2];
    Scope::load_16(word, from);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = static_cast<uint32_t>(word[i / 2] >> (i % 2 * 32));
  }
  static __device__ __forceinline__ bool missing(const uint32_t (&word)[4]) {
    constexpr uint32_t kEmpty = 0xffffffff;
    if (sizeof(T) == 8) return (word[0] & word[1]) == kEmpty || (word[2] & word[3]) == kEmpty;
    return word[0] == kEmpty || word[1] == kEmpty || word[2] == kEmpty || word[3] == kEmpty;
  }
};
struct GpuScope {
  static constexpr int kInFlight = 8;
  static __device__ __forceinline__ void load_16(uint64_t (&to)[2], const void* from) {
    hw::load_gpu_16(to, from);
  }
};
struct ClusterScope {
  static constexpr int kInFlight = 2;
  static __device__ __forceinline__ void load_16(uint64_t (&to)[2], const void* from) {
    hw::load_cluster_16(to, from);
  }
};

// Plan C: through global memory (L2). Deadlock free as long as all blocks of a group are resident
// together, since every block handles row tiles and epochs in the same order.
//
// The owner of a word empties it, and passes a fence. Whoever polls for epoch e + 3 there must not
// find epoch e - 1: it has read epoch e + 2 of the same thread, stored after that thread's fence of
// step e, and has passed its own fence of step e + 2. In a ring of 3 it would have read only epoch
// e + 1, stored before the fence.
template <class Math, int kOperands>
class GridExchange {
 public:
  using T = typename Math::Element;
  using Word = typename ExchangeWord<T>::Type;
  using Load = LoadExchange<T, GpuScope>;
  static constexpr bool kCluster = false;

  // The whole block, with a barrier: what the block set up before is there after it.
  __device__ __forceinline__ GridExchange(void* exchange, char* /*shared*/, const Slices&,
                                          int64_t hidden, int64_t batch)
      : exchange_(static_cast<char*>(exchange)),
        gate_bytes_(operand_bytes(hidden, sizeof(T), 1)),
        row_tiles_(row_tile_count(batch)) {
    hw::sync_block();
  }

  __device__ __forceinline__ int64_t gate_bytes() const { return gate_bytes_; }
  __device__ __forceinline__ char* operand(int64_t row_tile, int /*local*/, int64_t epoch) const {
    return exchange_ + (epoch % kRing * row_tiles_ + row_tile) * kOperands * gate_bytes_;
  }
  __device__ __forceinline__ void store(Word* to, Word value) const { hw::store_gpu(to, value); }
  // own(store) calls store(word) for each word that this thread owns in `retired`.
  template <class OwnWords>
  __device__ __forceinline__ void retire(char* retired, OwnWords own) const {
    own(retired, [](Word* word) { hw::store_gpu(word, ~Word{0}); });
    hw::fence_gpu();
  }
  __device__ __forceinline__ void finish() const {}

 private:
  char* exchange_;
  int64_t gate_bytes_, row_tiles_;
};

// Plan B: through the shared memory of the cluster's blocks (compute capability 9.0). Every block
// keeps the whole ring; a store goes to all of them.
//
// A block empties its own copy. Whoever stores epoch e + 3 there has read this block's epoch e + 2,
// stored after the barrier of step e + 1, which what step e emptied comes before. In a ring of 3 it
// would have read only epoch e + 1, stored in step e itself.
template <class Math, int kOperands>
class ClusterExchange {
 public:
  using T = typename Math::Element;
  using Word = typename ExchangeWord<T>::Type;
  using Load = LoadExchange<T, ClusterScope>;
  static constexpr bool kCluster = true;

  __device__ __forceinline__ ClusterExchange(void* /*exchange*/, char* shared, const Slices& slices,
                                             int64_t hidden, int64_t batch)
      : shared_(shared),
        blocks_(static_cast<uint32_t>(slices.slices)),
        gate_bytes_(operand_bytes(hidden, sizeof(T), 1)) {
    const int64_t row_tiles = ceil_div(row_tile_count(batch), slices.groups);
    for (int64_t i = 0; i < row_tiles * kRing; ++i) {
      retire(shared_ + i * kOperands * gate_bytes_, 0);
    }
    hw::sync_cluster();  // nobody stores here before this block has emptied its ring
  }

  __device__ __forceinline__ int64_t gate_bytes() const { return gate_bytes_; }
  __device__ __forceinline__ char* operand(int64_t /*row_tile*/, int local, int64_t epoch) const {
    return shared_ + (local * kRing + epoch % kRing) * kOperands * gate_bytes_;
  }
  // Each block begins with its right neighbour, so that not all store to one block at once.
  __device__ __forceinline__ void store(Word* to, Word value) const {
    uint32_t rank = hw::cluster_rank();
    for (uint32_t i = 0; i < blocks_; ++i) {
      rank = rank + 1 == blocks_ ? 0 : rank + 1;
      hw::store_cluster(to, rank, value);
    }
  }
  template <class OwnWords>
  __device__ __forceinline__ void retire(char* retired, OwnWords) const {
    const int words = static_cast<int>(kOperands * gate_bytes_ / sizeof(int4));
    for (int i = hw::thread(); i < words; i += hw::threads()) {
      reinterpret_cast<int4*>(retired)[i] = int4{-1, -1, -1, -1};
    }
  }
  // No block leaves while another one may still store to it.
  __device__ __forceinline__ void finish() const { hw::sync_cluster(); }

 private:
  char* shared_;
  uint32_t blocks_;
  int64_t gate_bytes_;
};

// ---- a word of one's own ----

__device__ __forceinline__ uint32_t bits_of(Bfloat16 x) { return x.bits; }
__device__ __forceinline__ uint32_t bits_of(Half x) { return x.bits; }
__device__ __forceinline__ uint32_t bits_of(float x) { return hw::bits_of(x); }
__device__ __forceinline__ uint64_t bits_of(double x) { return hw::bits_of(x); }

// The word with element (row, unit) of an operand, if this lane owns it: the even one of two
// neighbouring 16-bit units does, and units beyond the last k tile have none.
template <class Math, class Word>
__device__ __forceinline__ Word* own_word(char* operand, int row, int64_t unit,
                                          int64_t gate_bytes) {
  using T = typename Math::Element;
  if (unit * kRowTile * static_cast<int64_t>(sizeof(T)) >= gate_bytes) return nullptr;
  if (sizeof(T) < sizeof(Word) && unit % 2 != 0) return nullptr;
  return reinterpret_cast<Word*>(operand_at<Math>(operand, row, unit));
}

// Stores a value where it is read. A whole warp, whose lanes have consecutive units.
template <class Math, class Exchange>
__device__ __forceinline__ void put(const Exchange& exchange, char* operand, int row, int64_t unit,
                                    typename Math::Element value) {
  using Word = typename Exchange::Word;
  Word word = bits_of(value);
  if constexpr (sizeof(value) < sizeof(Word)) word |= hw::shuffle_xor(word, 1) << 16;
  Word* to = own_word<Math, Word>(operand, row, unit, exchange.gate_bytes());
  // All bits set are a NaN, or two: another one says the same.
  constexpr Word kEmpty = ~Word{0}, kNan = sizeof(value) < sizeof(Word) ? 0x7fff7fff : kEmpty / 2;
  if (to) exchange.store(to, word == kEmpty ? kNan : word);
}

}  // namespace cuda
}  // namespace fused_lstm
