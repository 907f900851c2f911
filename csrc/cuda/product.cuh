// The recurrent product of one warp: 16 batch rows times 8 hidden units, for each of four gates.
//
// Work is cut into k tiles: 32 bytes of k (16 16-bit, 8 float or 4 double values).
//   Operand tile, 512 bytes: 16 rows x one k tile (h going forward, gate gradients going back).
//   Weight block, 1024 bytes: four gates x 8 units x one k tile.
// Both are laid out so that a lane's share is contiguous 16- (8-) byte words: no ldmatrix, no
// padding, no bank conflict, and an operand tile reads the same from shared memory and from L2.
//
// A lane ends up with 4 cells per gate, whatever the dtype: with group = lane / 4 and
// member = lane % 4, cell e is row group + 8 * (e / 2), unit 2 * member + e % 2.
//
// Forward:  sum[gate] += h[:, k] * W[gate, units, k]      one operand, four gates
// Backward: sum += dgate[:, k] * W[gate, k, units]        one operand per gate; kChains sums per
//                                                         unit tile, so that 4 are under way
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

// Where operand tiles are read from: how many 16-byte words a lane asks for before it uses the
// first, and whether a word may not be there yet and is polled. exchange.cuh has the ones that are.
struct LoadShared {
  static constexpr int kInFlight = 1;
  static constexpr bool kPolls = false;
  __device__ __forceinline__ void operator()(uint32_t (&to)[4], const char* from) const {
    const int4 v = *reinterpret_cast<const int4*>(from);
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  }
};

// On tensor cores: the fragments of mma, see hw.cuh.
template <class Math, bool kTensorCore = Math::kTensorCore>
struct Tile {
  using Acc = float;
  static constexpr int kOperandWords = 1;  // 16-byte words of an operand tile per lane
  struct Operand {
    uint32_t word[4];
  };
  struct Weights {  // of one gate
    uint32_t word[2];
  };

  // Byte of element (row, byte kb of the row) in an operand tile, of (unit n, kb) in a gate block.
  static __device__ __forceinline__ int operand_offset(int row, int kb) {
    const int lane = row % 8 * 4 + kb % 16 / 4;
    return lane * 16 + (kb / 16 * 2 + row / 8) * 4 + kb % 4;
  }
  static __device__ __forceinline__ int weight_offset(int n, int kb) {
    const int lane = n * 4 + kb % 16 / 4;
    return lane * 8 + kb / 16 * 4 + kb % 4;
  }

  template <class Load>
  static __device__ __forceinline__ void read_operand(Operand& a, const char* tile, Load load) {
    load(a.word, tile + hw::lane() * 16);
  }
  template <class Load>
  static __device__ __forceinline__ bool missing(const Operand& a, Load load) {
    return load.missing(a.word);
  }
  static __device__ __forceinline__ void read_weights(Weights& b, const char* gate_block) {
    const int2 v = reinterpret_cast<const int2*>(gate_block)[hw::lane()];
    b.word[0] = v.x;
    b.word[1] = v.y;
  }
  static __device__ __forceinline__ void multiply(Acc (&sum)[4], const Operand& a,
                                                  const Weights& b) {
    Math::mma(sum, a.word, b.word[0], b.word[1]);
  }
};

// By fused multiply-add: each lane computes its own cells from whole rows.
template <class Math>
struct Tile<Math, false> {
  using Acc = typename Math::Acc;
  static constexpr int kUnits = kTileUnits<Math>;
  static constexpr int kOperandWords = 4;
  union Operand {
    uint32_t word[4][4];
    Acc value[2][kUnits];  // rows group and group + 8
  };
  union Weights {
    uint32_t word[4][4];
    Acc value[2][kUnits];  // units 2 * member and 2 * member + 1
  };

  static __device__ __forceinline__ int operand_offset(int row, int kb) {
    return row * kTileBytes + kb;
  }
  // The four members' 16-byte words lie side by side.
  static __device__ __forceinline__ int weight_offset(int n, int kb) {
    return ((n % 2 * 2 + kb / 16) * 4 + n / 2) * 16 + kb % 16;
  }

  template <class Load>
  static __device__ __forceinline__ void read_operand(Operand& a, const char* tile, Load load) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      load(a.word[i], tile + (hw::lane() / 4 + i / 2 * 8) * kTileBytes + i % 2 * 16);
    }
  }
  template <class Load>
  static __device__ __forceinline__ bool missing(const Operand& a, Load load) {
    return load.missing(a.word[0]) || load.missing(a.word[1]) || load.missing(a.word[2]) ||
           load.missing(a.word[3]);
  }
  static __device__ __forceinline__ void read_weights(Weights& b, const char* gate_block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      LoadShared()(b.word[i], gate_block + (i * 4 + hw::lane() % 4) * 16);
    }
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

// Writes T `value` to (row, unit) of an operand made of consecutive k tiles.
template <class Math>
__device__ __forceinline__ typename Math::Element* operand_at(char* operand, int row,
                                                              int64_t unit) {
  using T = typename Math::Element;
  constexpr int kUnits = kTileUnits<Math>;
  const int kb = static_cast<int>(unit % kUnits) * static_cast<int>(sizeof(T));
  return reinterpret_cast<T*>(operand + unit / kUnits * kOperandBytes +
                              Tile<Math>::operand_offset(row, kb));
}

// A warp fills one weight block: units from unit0, k from k0, zeros outside [0, H). Transposed
// is the backward product's: k runs over the rows of W_hh, units over its columns.
template <class Math, bool kTransposed>
__device__ __forceinline__ void fill_weights(char* block, const typename Math::Element* w_hh,
                                             int64_t stride, int64_t hidden, int64_t unit0,
                                             int64_t k0) {
  using T = typename Math::Element;
  constexpr int kUnits = kTileUnits<Math>;
  for (int i = hw::lane(); i < kGates * kUnitTile * kUnits; i += 32) {
    // Neighbouring lanes read neighbouring columns.
    const int gate = i / (kUnitTile * kUnits);
    const int n = kTransposed ? i % kUnitTile : i / kUnits % kUnitTile;
    const int k = kTransposed ? i / kUnitTile % kUnits : i % kUnits;
    const int64_t row = kTransposed ? k0 + k : unit0 + n;
    const int64_t column = kTransposed ? unit0 + n : k0 + k;
    T value{};
    if (row < hidden && column < hidden) {
      value = Math::round_operand(w_hh[(gate * hidden + row) * stride + column]);
    }
    const int kb = k * static_cast<int>(sizeof(T));
    *reinterpret_cast<T*>(block + gate * kGateBlockBytes + Tile<Math>::weight_offset(n, kb)) =
        value;
  }
}

// The weights of a warp: `count` k tiles from tile `first` for kUnitTiles unit tiles. The first
// kRegTiles k tiles stay in registers for the whole sequence, the others in shared memory at
// `shared` as [k tile][unit tile] blocks; at least one k tile of shared memory is there, because
// registers are filled through it.
template <class Math, int kUnitTiles, int kRegTiles, bool kTransposed>
struct WarpWeights {
  using T = typename Math::Element;
  using Warp = Tile<Math>;
  static constexpr int kRegs = kRegTiles > 0 ? kRegTiles : 1;
  static constexpr int kOperands = kTransposed ? kGates : 1;
  static constexpr int kChains = !kTransposed || kUnitTiles == 1 ? kGates : kUnitTiles == 2 ? 2 : 1;
  using Sums = typename Warp::Acc[kUnitTiles][kChains][4];

  int first, count;
  char* shared;
  typename Warp::Weights reg[kRegs][kUnitTiles][kGates];

  // A barrier must follow before `multiply`.
  __device__ __forceinline__ void load(const T* w_hh, int64_t stride, int64_t hidden,
                                       int64_t unit0) {
#pragma unroll
    for (int j = 0; j < kRegTiles; ++j) {
#pragma unroll
      for (int u = 0; u < kUnitTiles; ++u) {
        fill(shared, j, u, w_hh, stride, hidden, unit0);
        hw::sync_warp();
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          Warp::read_weights(reg[j][u][gate], shared + gate * kGateBlockBytes);
        }
        hw::sync_warp();
      }
    }
    for (int j = kRegTiles; j < count; ++j) {
      for (int u = 0; u < kUnitTiles; ++u) fill(block(j, u), j, u, w_hh, stride, hidden, unit0);
    }
  }

  // sum[unit tile][gate, or chain] of the k tiles; `operand` is the first k tile of the whole
  // operand, and going backward gate g's operand lies gate_bytes * g further on.
  template <class Load>
  __device__ __forceinline__ void multiply(Sums& sum, const char* operand, int64_t gate_bytes,
                                           Load load) const {
    constexpr int kWords = kOperands * Warp::kOperandWords;  // of a k tile
    constexpr int kBatch = Load::kInFlight > kWords ? Load::kInFlight / kWords : 1;
    const Reader<Load, kBatch> read{operand + static_cast<int64_t>(first) * kOperandBytes,
                                    gate_bytes, count, load};
    typename Warp::Operand a[kBatch][kOperands];
#pragma unroll
    for (int j0 = 0; j0 < kRegTiles; j0 += kBatch) {
      read.ahead(a, j0);
#pragma unroll
      for (int i = 0; i < kBatch && j0 + i < kRegTiles; ++i) {
        if (j0 + i >= count) break;
        multiply_tile(
            sum, [&](int g) { return read.operand(a, j0, i, g); },
            [&](int u, int gate) { return reg[j0 + i][u][gate]; });
      }
    }
    for (int j0 = kRegTiles; j0 < count; j0 += kBatch) {
      read.ahead(a, j0);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (j0 + i >= count) break;
        multiply_tile(
            sum, [&](int g) { return read.operand(a, j0, i, g); },
            [&](int u, int gate) {
              typename Warp::Weights b;
              Warp::read_weights(b, block(j0 + i, u) + gate * kGateBlockBytes);
              return b;
            });
      }
    }
  }

 private:
  __device__ __forceinline__ char* block(int j, int u) const {
    return shared + static_cast<int64_t>((j - kRegTiles) * kUnitTiles + u) * kBlockBytes;
  }
  __device__ __forceinline__ void fill(char* to, int j, int u, const T* w_hh, int64_t stride,
                                       int64_t hidden, int64_t unit0) const {
    fill_weights<Math, kTransposed>(to, w_hh, stride, hidden, unit0 + u * kUnitTile,
                                    static_cast<int64_t>(first + j) * kTileUnits<Math>);
  }
  // Operand tiles: `ahead` asks for a batch of them where they are polled, until all are there;
  // where the way is short each is read when it is used, which takes fewer registers.
  template <class Load, int kBatch>
  struct Reader {
    const char* tile;
    int64_t gate_bytes;
    int count;
    Load load;

    __device__ __forceinline__ void read(typename Warp::Operand& a, int j, int g) const {
      Warp::read_operand(a, tile + j * kOperandBytes + g * gate_bytes, load);
    }
    __device__ __forceinline__ void ahead(typename Warp::Operand (&a)[kBatch][kOperands],
                                          int j0) const {
      if constexpr (Load::kPolls) {
        bool missing;
        do {
          missing = false;
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
#pragma unroll
            for (int g = 0; g < kOperands; ++g) {
              if (j0 + i < count) read(a[i][g], j0 + i, g);
            }
          }
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
#pragma unroll
            for (int g = 0; g < kOperands; ++g) {
              if (j0 + i < count) missing |= Warp::missing(a[i][g], load);
            }
          }
        } while (hw::any_lane(missing));
      }
    }
    __device__ __forceinline__ typename Warp::Operand operand(
        const typename Warp::Operand (&a)[kBatch][kOperands], int j0, int i, int g) const {
      if constexpr (Load::kPolls) return a[i][g];
      typename Warp::Operand now;
      read(now, j0 + i, g);
      return now;
    }
  };

  template <class OperandOf, class WeightsOf>
  static __device__ __forceinline__ void multiply_tile(Sums& sum, OperandOf operand,
                                                       WeightsOf weights) {
#pragma unroll
    for (int g = 0; g < kOperands; ++g) {
      const typename Warp::Operand a = operand(g);
#pragma unroll
      for (int u = 0; u < kUnitTiles; ++u) {
#pragma unroll
        for (int gate = 0; gate < kGates; ++gate) {
          if (!kTransposed || gate == g) {
            Warp::multiply(sum[u][gate % kChains], a, weights(u, gate));
          }
        }
      }
    }
  }
};

}  // namespace cuda
}  // namespace fused_lstm
