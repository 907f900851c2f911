// The tiles of the recurrent product of one warp: 16 batch rows times 8 hidden units, for each of
// four gates.
//
// Work is cut into k tiles: 32 bytes of k (16 16-bit, 8 float or 4 double values).
//   Operand tile, 512 bytes: 16 rows x one k tile (h going forward, gate gradients going back).
//   Weight block, 1024 bytes: four gates x 8 units x one k tile.
// Both are laid out so that a lane's share is contiguous 16- (8-) byte words: no ldmatrix, no
// padding, no bank conflict, and an operand tile reads the same from shared memory and from L2.
//
// A lane ends up with 4 cells per gate, whatever the dtype: with group = lane / 4 and
// member = lane % 4, cell e is row group + 8 * (e / 2), unit 2 * member + e % 2.
#pragma once

#include "math.cuh"

namespace fused_lstm {
namespace cuda {

constexpr int kOperandBytes = kRowTile * kTileBytes;   // 512
constexpr int kGateBlockBytes = kBlockBytes / kGates;  // 256

template <class Math>
constexpr int kTileUnits = kTileBytes / static_cast<int>(sizeof(typename Math::Element));

__device__ __forceinline__ int cell_row(int e) { return hw::lane() / 4 + 8 * (e / 2); }
__device__ __forceinline__ int cell_unit(int e) { return hw::lane() % 4 * 2 + e % 2; }

__device__ __forceinline__ void load_16(uint32_t (&to)[4], const char* from) {
  const int4 v = *reinterpret_cast<const int4*>(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}
__device__ __forceinline__ void store_16(char* to, const uint32_t (&from)[4]) {
  *reinterpret_cast<int4*>(to) = int4{static_cast<int>(from[0]), static_cast<int>(from[1]),
                                      static_cast<int>(from[2]), static_cast<int>(from[3])};
}

// W_hh [4H, H] as the product reads it: for hidden unit `unit` of the result, the weight of `k`.
// Transposed is the backward product's: k runs over the rows of W_hh, units over its columns.
template <class Math, bool kTransposed>
struct WeightMatrix {
  using T = typename Math::Element;
  const T* data;
  int64_t stride, hidden;

  // Zero outside of the layer, which tiles may reach beyond.
  __device__ __forceinline__ T at(int gate, int64_t unit, int64_t k) const {
    return in_rows(gate, kTransposed ? k : unit, kTransposed ? unit : k);
  }
  // Two 16-bit neighbours of a row as one word, in one access where its address allows.
  __device__ __forceinline__ uint32_t pair(int gate, int64_t row, int64_t column) const {
    const T* first = data + (gate * hidden + row) * stride + column;
    if (row < hidden && column + 1 < hidden && reinterpret_cast<uintptr_t>(first) % 4 == 0) {
      return *reinterpret_cast<const uint32_t*>(first);
    }
    return in_rows(gate, row, column).bits |
           static_cast<uint32_t>(in_rows(gate, row, column + 1).bits) << 16;
  }

 private:
  __device__ __forceinline__ T in_rows(int gate, int64_t row, int64_t column) const {
    if (row >= hidden || column >= hidden) return T{};
    return Math::round_operand(data[(gate * hidden + row) * stride + column]);
  }
};

// On tensor cores: the fragments of mma, see hw.cuh.
template <class Math, bool kTensorCore = Math::kTensorCore>
struct Tile {
  using Acc = float;
  static constexpr int kOperandWords = 1;  // 16-byte words of an operand tile per lane
  struct Operand {
    uint32_t word[kOperandWords][4];
  };
  struct Weights {  // of one gate
    uint32_t word[2];
  };
  // What a lane brings of a weight block: its own fragments, so no other lane waits for it.
  struct BlockShare {
    Weights gate[kGates];
  };

  // Byte of element (row, byte kb of the row) in an operand tile.
  static __device__ __forceinline__ int operand_offset(int row, int kb) {
    const int lane = row % 8 * 4 + kb % 16 / 4;
    return lane * 16 + (kb / 16 * 2 + row / 8) * 4 + kb % 4;
  }
  // Byte of this lane's i-th word of an operand tile.
  static __device__ __forceinline__ int word_offset(int /*i*/) { return hw::lane() * 16; }

  template <bool kTransposed>
  static __device__ __forceinline__ BlockShare fetch(const WeightMatrix<Math, kTransposed>& w,
                                                     int64_t unit0, int64_t k0) {
    const int group = hw::lane() / 4, member = hw::lane() % 4;
    BlockShare share;
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t& word = share.gate[gate].word[i];
        if constexpr (sizeof(typename Math::Element) == 4) {
          word = hw::bits_of(w.at(gate, unit0 + group, k0 + i * 4 + member));
        } else if constexpr (kTransposed) {
          word = w.pair(gate, k0 + i * 8 + group, unit0 + member * 2);
        } else {
          word = w.pair(gate, unit0 + group, k0 + i * 8 + member * 2);
        }
      }
    }
    return share;
  }
  // A transposed share as it is multiplied. The lanes exchange what they have loaded, and wait for
  // it: to be called when all loads that are to be under way at once are.
  static __device__ __forceinline__ void arrange(BlockShare& share) {
    if constexpr (sizeof(typename Math::Element) == 2) {
#pragma unroll
      for (int gate = 0; gate < kGates; ++gate) {
        for (uint32_t& word : share.gate[gate].word) word = hw::transpose_16(word);
      }
    }
  }
  static __device__ __forceinline__ void store(char* block, const BlockShare& share) {
#pragma unroll
    for (int gate = 0; gate < kGates; ++gate) {
      const Weights& w = share.gate[gate];
      reinterpret_cast<int2*>(block + gate * kGateBlockBytes)[hw::lane()] =
          int2{static_cast<int>(w.word[0]), static_cast<int>(w.word[1])};
    }
  }
  static __device__ __forceinline__ Weights read_weights(const char* gate_block) {
    const int2 v = reinterpret_cast<const int2*>(gate_block)[hw::lane()];
    return {{static_cast<uint32_t>(v.x), static_cast<uint32_t>(v.y)}};
  }
  static __device__ __forceinline__ void multiply(Acc (&sum)[4], const Operand& a,
                                                  const Weights& b) {
    Math::mma(sum, a.word[0], b.word[0], b.word[1]);
  }
};

// By fused multiply-add: each lane computes its own cells from whole rows.
template <class Math>
struct Tile<Math, false> {
  using Acc = typename Math::Acc;
  static constexpr int kUnits = kTileUnits<Math>;
  static constexpr int kOperandWords = 4;
  union Operand {
    uint32_t word[kOperandWords][4];
    Acc value[2][kUnits];  // rows group and group + 8
  };
  union Weights {
    uint32_t word[4][4];
    Acc value[2][kUnits];  // units 2 * member and 2 * member + 1
  };
  // Of the block's 64 16-byte words, numbers lane and lane + 32; all lanes read all of them.
  union BlockShare {
    uint32_t word[2][4];
    Acc value[2][kUnits / 2];
  };

  static __device__ __forceinline__ int operand_offset(int row, int kb) {
    return row * kTileBytes + kb;
  }
  static __device__ __forceinline__ int word_offset(int i) {
    return (hw::lane() / 4 + i / 2 * 8) * kTileBytes + i % 2 * 16;
  }

  // Word ((unit % 2) * 2 + half of k) * 4 + unit / 2 of a gate: the four members' words, which are
  // read together, lie side by side.
  template <bool kTransposed>
  static __device__ __forceinline__ BlockShare fetch(const WeightMatrix<Math, kTransposed>& w,
                                                     int64_t unit0, int64_t k0) {
    BlockShare share;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int number = hw::lane() + 32 * i, gate = number / 16, word = number % 16;
      const int64_t unit = unit0 + word % 4 * 2 + word / 8, k = k0 + word / 4 % 2 * (kUnits / 2);
#pragma unroll
      for (int j = 0; j < kUnits / 2; ++j) share.value[i][j] = w.at(gate, unit, k + j);
    }
    return share;
  }
  static __device__ __forceinline__ void arrange(BlockShare&) {}
  static __device__ __forceinline__ void store(char* block, const BlockShare& share) {
#pragma unroll
    for (int i = 0; i < 2; ++i) store_16(block + (hw::lane() + 32 * i) * 16, share.word[i]);
  }
  static __device__ __forceinline__ Weights read_weights(const char* gate_block) {
    Weights b;
#pragma unroll
    for (int i = 0; i < 4; ++i) load_16(b.word[i], gate_block + (i * 4 + hw::lane() % 4) * 16);
    return b;
  }
  static __device__ __forceinline__ void multiply(Acc (&sum)[4], const Operand& a,
                                                  const Weights& b) {
#pragma unroll
    for (int k = 0; k < kUnits; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] += a.value[e / 2][k] * b.value[e % 2][k];
    }
  }
};

// Where T (row, unit) of an operand made of consecutive k tiles lies.
template <class Math>
__device__ __forceinline__ typename Math::Element* operand_at(char* operand, int row,
                                                              int64_t unit) {
  using T = typename Math::Element;
  constexpr int kUnits = kTileUnits<Math>;
  const int kb = static_cast<int>(unit % kUnits) * static_cast<int>(sizeof(T));
  return reinterpret_cast<T*>(operand + unit / kUnits * kOperandBytes +
                              Tile<Math>::operand_offset(row, kb));
}

}  // namespace cuda
}  // namespace fused_lstm
