// Two neighbouring hidden units of one row, as the lanes of plan A have them: one access where the
// address allows it, else two; always two where sums and operands leave no registers for both ways.
#pragma once

#include "math.cuh"

namespace fused_lstm {
namespace cuda {

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T at[2];
};

// Whether all pairs of a matrix with rows `stride` elements apart can be accessed at once; an
// absent matrix is in no one's way.
template <typename T>
__device__ __forceinline__ bool pairs_aligned(const T* matrix, int64_t stride) {
  return reinterpret_cast<uintptr_t>(matrix) % sizeof(Pair<T>) == 0 && stride % 2 == 0;
}

// units: how many of the two exist; the others are zero. together: pairs_aligned().
template <typename T>
__device__ __forceinline__ Pair<T> load_pair(const T* from, int units, bool together) {
  if (together && units == 2) return *reinterpret_cast<const Pair<T>*>(from);
  return {{units > 0 ? from[0] : T{}, units > 1 ? from[1] : T{}}};
}
template <typename T>
__device__ __forceinline__ void store_pair(T* to, const Pair<T>& pair, int units, bool together) {
  if (together && units == 2) {
    *reinterpret_cast<Pair<T>*>(to) = pair;
    return;
  }
  if (units > 0) to[0] = pair.at[0];
  if (units > 1) to[1] = pair.at[1];
}

// The four gates of both units; the gates lie `apart` elements apart.
template <typename T>
struct PairGates {
  Pair<T> gate[kGates];

  __device__ __forceinline__ void load(const T* from, int64_t apart, int units, bool together) {
#pragma unroll
    for (int g = 0; g < kGates; ++g) gate[g] = load_pair(from + g * apart, units, together);
  }
  __device__ __forceinline__ void store(T* to, int64_t apart, int units, bool together) const {
#pragma unroll
    for (int g = 0; g < kGates; ++g) store_pair(to + g * apart, gate[g], units, together);
  }
  template <typename Acc>
  __device__ __forceinline__ Gates<Acc> of(int unit) const {
    return {to_acc(gate[0].at[unit]), to_acc(gate[1].at[unit]), to_acc(gate[2].at[unit]),
            to_acc(gate[3].at[unit])};
  }
  __device__ __forceinline__ void set(int unit, const Gates<T>& gates) {
    gate[0].at[unit] = gates.i;
    gate[1].at[unit] = gates.f;
    gate[2].at[unit] = gates.g;
    gate[3].at[unit] = gates.o;
  }
};

}  // namespace cuda
}  // namespace fused_lstm
