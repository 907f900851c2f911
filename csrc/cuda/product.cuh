// The recurrent product of one warp, over its share of the k tiles (tile.cuh).
//
// Forward:  sum[gate] += h[:, k] * W[gate, units, k]      one operand, four gates
// Backward: sum += dgate[:, k] * W[gate, k, units]        one operand per gate; kChains sums per
//                                                         unit tile, so that 4 are under way
#pragma once

#include "operands.cuh"

namespace fused_lstm {
namespace cuda {

// The weights of a warp: `count` k tiles from tile `first` for kUnitTiles unit tiles. The first
// kRegTiles k tiles stay in registers for the whole sequence, the others in shared memory at
// `shared` as [k tile][unit tile] blocks.
template <class Math, int kUnitTiles, int kRegTiles, bool kTransposed>
struct WarpWeights {
  using T = typename Math::Element;
  using Warp = Tile<Math>;
  static_assert(Math::kTensorCore || kRegTiles == 0, "a k tile would take 64 registers");
  static constexpr int kRegs = kRegTiles > 0 ? kRegTiles : 1;
  static constexpr int kOperands = kTransposed ? kGates : 1;
  static constexpr int kChains = !kTransposed || kUnitTiles == 1 ? kGates : kUnitTiles == 2 ? 2 : 1;
  using Sums = typename Warp::Acc[kUnitTiles][kChains][4];

  int first, count;
  char* shared;
  typename Warp::BlockShare reg[kRegs][kUnitTiles];

  // A barrier must follow before `multiply`.
  __device__ __forceinline__ void load(const T* w_hh, int64_t stride, int64_t hidden,
                                       int64_t unit0) {
    const WeightMatrix<Math, kTransposed> w{w_hh, stride, hidden};
    const auto fetch = [&](int j, int u) {
      return Warp::fetch(w, unit0 + u * kUnitTile,
                         static_cast<int64_t>(first + j) * kTileUnits<Math>);
    };
#pragma unroll
    for (int j = 0; j < kRegTiles; ++j) {
#pragma unroll
      for (int u = 0; u < kUnitTiles; ++u) reg[j][u] = j < count ? fetch(j, u) : BlockShare{};
    }
    if constexpr (kTransposed && kRegTiles > 0) {
#pragma unroll
      for (int j = 0; j < kRegTiles; ++j) {
#pragma unroll
        for (int u = 0; u < kUnitTiles; ++u) Warp::arrange(reg[j][u]);
      }
    }
    // Some 32 loads of each lane are under way before the first is used.
    constexpr int kFetch = kUnitTiles >= 4 ? 1 : 4 / kUnitTiles;
    for (int j = kRegTiles; j < count; j += kFetch) {
      BlockShare share[kFetch][kUnitTiles];
#pragma unroll
      for (int i = 0; i < kFetch; ++i) {
#pragma unroll
        for (int u = 0; u < kUnitTiles; ++u) {
          if (j + i < count) share[i][u] = fetch(j + i, u);
        }
      }
#pragma unroll
      for (int i = 0; i < kFetch; ++i) {
#pragma unroll
        for (int u = 0; u < kUnitTiles; ++u) {
          if (j + i < count) {
            if constexpr (kTransposed) Warp::arrange(share[i][u]);
            Warp::store(block(j + i, u), share[i][u]);
          }
        }
      }
    }
  }

  // sum[unit tile][gate, or chain] over the k tiles, in their order.
  template <class Operands>
  __device__ __forceinline__ void multiply(Sums& sum, Operands& operands) const {
    constexpr int kTiles = Operands::kTiles;
    if constexpr (kRegTiles > 0) {
#pragma unroll
      for (int j = 0; j < kRegTiles; ++j) {
        if (j >= count) break;
        multiply_tile(sum, operands, j % kTiles, j,
                      [&](int u, int gate) { return reg[j][u].gate[gate]; });
      }
    }
    for (int j0 = kRegTiles; j0 < count; j0 += kTiles) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (j0 + i >= count) break;
        multiply_tile(sum, operands, (kRegTiles + i) % kTiles, j0 + i, [&](int u, int gate) {
          return Warp::read_weights(block(j0 + i, u) + gate * kGateBlockBytes);
        });
      }
    }
  }

 private:
  using BlockShare = typename Warp::BlockShare;

  __device__ __forceinline__ char* block(int j, int u) const {
    return shared + static_cast<int64_t>((j - kRegTiles) * kUnitTiles + u) * kBlockBytes;
  }

  template <class Operands, class WeightsOf>
  static __device__ __forceinline__ void multiply_tile(Sums& sum, Operands& operands, int slot,
                                                       int j, WeightsOf weights) {
    operands.wait(slot, j);
#pragma unroll
    for (int g = 0; g < kOperands; ++g) {
      const typename Warp::Operand a = operands.operand(slot, j, g);
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
    operands.used(slot, j);
  }
};

}  // namespace cuda
}  // namespace fused_lstm
