// How the blocks of one group hand each other what the next step multiplies: h going forward, the
// gradients of the four gates going back. Plans B and C are one kernel with these two exchanges.
//
// An operand is [k tile] operand tiles (tile.cuh). Epoch e is what step e - 1 of the row tile
// produced (0: the initial h). A word is empty, all bits set, until the one thread that owns it
// stores a value there; so the readers poll the very words that they multiply, and between a store
// and the product that needs it there is neither a flag nor a barrier nor a fence.
//
// Epoch e lies in operand e % kGridRing of the row tile, in plan B e % kClusterRing. In step e a
// block
//   1. reads epoch e, passes a fence, and knows after a barrier that all its warps have;
//   2. stores its own units of epoch e + 1;
//   3. empties (retires) what no one reads any more, for an epoch to come.
// The fence is where what it waits for, the stores of the step before, is a whole hop old. What
// makes 3 early enough, and so how long a ring must be, is said with each exchange: there is a
// chain from the thread that empties a word, over fences, to whoever reads or stores there next.
#pragma once

#include "layout.h"
#include "product.cuh"

namespace fused_lstm {
namespace cuda {

// What one store carries, and what a poll must load: two 16-bit elements of neighbouring units, or
// one wider element.
template <typename T>
struct ExchangeWord {
  using Type = uint32_t;
};
template <>
struct ExchangeWord<double> {
  using Type = uint64_t;
};

// Polled loads of 16 bytes: Scope is GpuScope or ClusterScope.
template <typename T, class Scope, int kOperands>
struct PolledLoad {
  static constexpr uint32_t kEmpty = 0xffffffff;
  static constexpr int kInFlight = Scope::in_flight(kOperands);
  static constexpr int kSpin = Scope::kSpin;

  static __device__ __forceinline__ void load(uint32_t (&to)[4], const char* from) {
    if constexpr (sizeof(T) == 8) {
      uint64_t word[2];
      Scope::load(word, from);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i] = static_cast<uint32_t>(word[i / 2] >> (i % 2 * 32));
    } else {
      Scope::load(to, from);
    }
  }
  static __device__ __forceinline__ bool missing(const uint32_t (&word)[4]) {
    if (sizeof(T) == 8) return (word[0] & word[1]) == kEmpty || (word[2] & word[3]) == kEmpty;
    return word[0] == kEmpty || word[1] == kEmpty || word[2] == kEmpty || word[3] == kEmpty;
  }
};
// A load from L2 takes some 300 cycles, 0.17 us. In flight of 16-byte words per lane: as many as
// there are registers for. While waiting 4: 64 blocks of 8 warps then ask for 64 * 8 * 4 * 512
// bytes = 1 MB in that time, about what L2 gives (5.5 TB/s * 0.17 us).
struct GpuScope {
  static constexpr int in_flight(int operands) { return operands == 1 ? 8 : 16; }
  static constexpr int kSpin = 4;
  template <class Word, int n>
  static __device__ __forceinline__ void load(Word (&to)[n], const void* from) {
    hw::load_gpu(to, from);
  }
};
// From shared memory some 30 cycles.
struct ClusterScope {
  static constexpr int in_flight(int /*operands*/) { return 4; }
  static constexpr int kSpin = 4;
  template <class Word, int n>
  static __device__ __forceinline__ void load(Word (&to)[n], const void* from) {
    hw::load_cluster(to, from);
  }
};

// Plan C: through global memory (L2). Deadlock free as long as all blocks of a group are resident
// together, since every block handles row tiles and epochs in the same order.
//
// In step e the owner of a word empties epoch e - 1 there: each block has stored epoch e, and had
// read epoch e - 1 before. With F = kGridFenceEvery, the owner's next fence is in step f <= e + F,
// and it stores epoch f + 1 after that. Whoever reads this passes a fence itself in step f + F at
// the latest, and asks for epoch f + F + 1 <= e + 2F + 1 after that. So what was emptied may hold
// epoch e + 2F + 1 next: kGridRing = 2F + 2.
template <class Math, int kOperands>
class GridExchange {
 public:
  using T = typename Math::Element;
  using Word = typename ExchangeWord<T>::Type;
  using Load = PolledLoad<T, GpuScope, kOperands>;
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
    return exchange_ + (epoch % kGridRing * row_tiles_ + row_tile) * kOperands * gate_bytes_;
  }
  __device__ __forceinline__ void store(Word* to, Word value) const { hw::store_gpu(to, value); }
  __device__ __forceinline__ void fence(int64_t step) const {
    if (static_cast<uint32_t>(step) % kGridFenceEvery == 0) hw::fence_gpu();
  }
  // After step `step` has read its epoch. own(operand, empty) calls empty(word) for each word that
  // this thread owns there.
  template <class OwnWords>
  __device__ __forceinline__ void retire(int64_t row_tile, int local, int64_t step,
                                         OwnWords own) const {
    own(operand(row_tile, local, step + kGridRing - 1),
        [](Word* word) { hw::store_gpu(word, ~Word{0}); });
  }
  __device__ __forceinline__ void finish() const {}

 private:
  char* exchange_;
  int64_t gate_bytes_, row_tiles_;
};

// Plan B: through the shared memory of the cluster's blocks (compute capability 9.0). Every block
// keeps the whole ring; a store goes to all of them.
//
// In step e a block empties epoch e of its own copy, which all its warps have read. The barrier of
// step e + 1 tells its threads so, their fence of step e + 2 the others: whoever reads the epoch
// e + 3 that they store then passes its own fence and barrier in step e + 3, and stores epoch e + 4
// after that. So kClusterRing = 4.
template <class Math, int kOperands>
class ClusterExchange {
 public:
  using T = typename Math::Element;
  using Word = typename ExchangeWord<T>::Type;
  using Load = PolledLoad<T, ClusterScope, kOperands>;
  static constexpr bool kCluster = true;

  __device__ __forceinline__ ClusterExchange(void* /*exchange*/, char* shared, const Slices& slices,
                                             int64_t hidden, int64_t batch)
      : shared_(shared),
        blocks_(static_cast<uint32_t>(slices.slices)),
        gate_bytes_(operand_bytes(hidden, sizeof(T), 1)) {
    const int64_t row_tiles = ceil_div(row_tile_count(batch), slices.groups);
    empty(shared_, row_tiles * kClusterRing);
    hw::sync_cluster();  // nobody stores here before this block has emptied its ring
  }

  __device__ __forceinline__ int64_t gate_bytes() const { return gate_bytes_; }
  __device__ __forceinline__ char* operand(int64_t /*row_tile*/, int local, int64_t epoch) const {
    return shared_ + (local * kClusterRing + epoch % kClusterRing) * kOperands * gate_bytes_;
  }
  // Each block begins with its right neighbour, so that not all store to one block at once.
  __device__ __forceinline__ void store(Word* to, Word value) const {
    uint32_t rank = hw::cluster_rank();
    for (uint32_t i = 0; i < blocks_; ++i) {
      rank = rank + 1 == blocks_ ? 0 : rank + 1;
      hw::store_cluster(to, rank, value);
    }
  }
  __device__ __forceinline__ void fence(int64_t /*step*/) const { hw::fence_cluster_shared(); }
  template <class OwnWords>
  __device__ __forceinline__ void retire(int64_t row_tile, int local, int64_t step,
                                         OwnWords) const {
    empty(operand(row_tile, local, step), 1);
  }
  // No block leaves while another one may still store to it.
  __device__ __forceinline__ void finish() const { hw::sync_cluster(); }

 private:
  // The whole block: `count` operands, one after the other.
  __device__ __forceinline__ void empty(char* operands, int64_t count) const {
    const int bytes = static_cast<int>(count * kOperands * gate_bytes_);
    for (int i = hw::thread() * 16; i < bytes; i += hw::threads() * 16) {
      hw::empty_shared_16<Word>(operands + i);
    }
  }

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
