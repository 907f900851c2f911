// The arithmetic of one dtype: storage type, sum type, and how a warp multiplies.
//
// A math type (Fp32, Tf32, Bf16, Fp16, Fp64) names
//   Element     what gates, h and weights are stored in
//   Acc         what c and all sums are kept in
//   kTensorCore whether the recurrent product runs on mma
// and `round_operand`, applied to what enters a tensor core.
#pragma once

#include <cmath>
#include <cstdint>

#include "../cell.h"
#include "hw.cuh"
#include "params.h"

namespace fused_lstm {
namespace cuda {

__device__ __forceinline__ float to_acc(float x) { return x; }
__device__ __forceinline__ double to_acc(double x) { return x; }
__device__ __forceinline__ float to_acc(Bfloat16 x) { return hw::to_float(x); }
__device__ __forceinline__ float to_acc(Half x) { return hw::to_float(x); }

template <typename T>
struct From;
template <>
struct From<float> {
  static __device__ __forceinline__ float acc(float x) { return x; }
};
template <>
struct From<double> {
  static __device__ __forceinline__ double acc(double x) { return x; }
};
template <>
struct From<Bfloat16> {
  static __device__ __forceinline__ Bfloat16 acc(float x) { return hw::to_bfloat16(x); }
};
template <>
struct From<Half> {
  static __device__ __forceinline__ Half acc(float x) { return hw::to_half(x); }
};

struct Fp64 {
  using Element = double;
  using Acc = double;
  static constexpr bool kTensorCore = false;
  static __device__ __forceinline__ double round_operand(double x) { return x; }
};
struct Fp32 {
  using Element = float;
  using Acc = float;
  static constexpr bool kTensorCore = false;
  static __device__ __forceinline__ float round_operand(float x) { return x; }
};
struct Tf32 {
  using Element = float;
  using Acc = float;
  static constexpr bool kTensorCore = true;
  static __device__ __forceinline__ float round_operand(float x) { return hw::round_tf32(x); }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    hw::mma_tf32(c, a, b0, b1);
  }
};
struct Bf16 {
  using Element = Bfloat16;
  using Acc = float;
  static constexpr bool kTensorCore = true;
  static __device__ __forceinline__ Bfloat16 round_operand(Bfloat16 x) { return x; }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    hw::mma_bf16(c, a, b0, b1);
  }
};
struct Fp16 {
  using Element = Half;
  using Acc = float;
  static constexpr bool kTensorCore = true;
  static __device__ __forceinline__ Half round_operand(Half x) { return x; }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    hw::mma_fp16(c, a, b0, b1);
  }
};

// ---- the cell ----

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }

template <typename Acc>
__device__ __forceinline__ Gates<Acc> activate(Acc i, Acc f, Acc g, Acc o) {
  return {sigmoid(i), sigmoid(f), tanh_of(g), sigmoid(o)};
}

template <typename T, typename Acc>
__device__ __forceinline__ Gates<T> gates_of(const Gates<Acc>& a) {
  return {From<T>::acc(a.i), From<T>::acc(a.f), From<T>::acc(a.g), From<T>::acc(a.o)};
}

// The four gates of a unit lie `apart` elements apart, in the order i f g o: H in [.., 4H].
template <typename T, class Store>
__device__ __forceinline__ void put_gates(T* at, int64_t apart, const Gates<T>& a, Store store) {
  store(at, a.i);
  store(at + apart, a.f);
  store(at + 2 * apart, a.g);
  store(at + 3 * apart, a.o);
}
template <typename T, typename Acc>
__device__ __forceinline__ void store_gates(T* at, int64_t apart, const Gates<Acc>& a) {
  put_gates(at, apart, gates_of<T>(a), [](T* to, T value) { *to = value; });
}
template <typename Acc, typename T>
__device__ __forceinline__ Gates<Acc> load_gates(const T* at, int64_t apart) {
  return {to_acc(at[0]), to_acc(at[apart]), to_acc(at[2 * apart]), to_acc(at[3 * apart])};
}

// Element [row, unit] of a matrix that may be absent, which means zeros.
template <typename Acc, typename T>
__device__ __forceinline__ Acc load_or_zero(const T* matrix, int64_t row, int64_t stride,
                                            int64_t unit) {
  return matrix ? static_cast<Acc>(to_acc(matrix[row * stride + unit])) : Acc(0);
}

}  // namespace cuda
}  // namespace fused_lstm
