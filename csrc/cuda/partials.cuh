// The sums that the warps of a block hand each other through shared memory, once per product: each
// warp has part of the k of every cell (sliced.cuh), the thread that finishes a cell needs all.
//
// Layout: see partial_elements() in layout.h. No access has a bank conflict.
//   Forward: the four gates of a cell are one vector. Unit n of row r is the (n ^ (r & 1))-th of
//   its row: 8 lanes, which store units of one parity in two rows at once, so meet all 8 places.
//   Backward: a lane's two neighbouring cells go in one store.
#pragma once

#include "layout.h"
#include "product.cuh"

namespace fused_lstm {
namespace cuda {

// n neighbours in shared memory, moved by as few accesses as there are 16 bytes in them.
template <typename Acc, int n>
struct alignas(sizeof(Acc) * n < 16 ? sizeof(Acc) * n : 16) SharedVector {
  Acc at[n];
};

template <typename Acc, int kUnitTiles, bool kTransposed>
class PartialSums {
 public:
  static constexpr int kElements = partial_elements(kUnitTiles, kTransposed ? kGates : 1);
  static constexpr int kSums = kTransposed ? 1 : kGates;  // per cell
  using Cell = SharedVector<Acc, kSums>;

  // [k warp][unit tile] of one product.
  __device__ __forceinline__ explicit PartialSums(Acc* sums) : sums_(sums) {}

  // The sums [kChains][4] that a warp has for unit tile `tile` of the block.
  template <int kChains>
  __device__ __forceinline__ void put(int k_warp, int tile, const Acc (&sum)[kChains][4]) const {
    Acc* to = sums_ + (k_warp * kUnitTiles + tile) * kElements;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if constexpr (!kTransposed) {
        *reinterpret_cast<Cell*>(to + place(cell_row(e), cell_unit(e))) =
            Cell{{sum[0][e], sum[1][e], sum[2][e], sum[3][e]}};
      } else if (e % 2 == 0) {
        *reinterpret_cast<SharedVector<Acc, 2>*>(to + place(cell_row(e), cell_unit(e))) = {
            {total(sum, e), total(sum, e + 1)}};
      }
    }
  }

  // Of the cell (row, unit of the block), added up over kWarps warps in their order.
  template <int kWarps>
  __device__ __forceinline__ Cell get(int row, int unit) const {
    const Acc* from = sums_ + unit / kUnitTile * kElements + place(row, unit % kUnitTile);
    Cell cell = *reinterpret_cast<const Cell*>(from);
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) {
      const Cell more = *reinterpret_cast<const Cell*>(from + warp * kUnitTiles * kElements);
#pragma unroll
      for (int i = 0; i < kSums; ++i) cell.at[i] += more.at[i];
    }
    return cell;
  }

 private:
  static __device__ __forceinline__ int place(int row, int unit) {
    return kTransposed ? row * kUnitTile + unit : (row * kUnitTile + (unit ^ (row & 1))) * kGates;
  }
  template <int kChains>
  static __device__ __forceinline__ Acc total(const Acc (&sum)[kChains][4], int e) {
    Acc all = sum[0][e];
#pragma unroll
    for (int chain = 1; chain < kChains; ++chain) all += sum[chain][e];
    return all;
  }

  Acc* sums_;
};

}  // namespace cuda
}  // namespace fused_lstm
