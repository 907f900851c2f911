// The arithmetic of one dtype: storage type, sum type, and how a warp multiplies.
//
// A math type (Fp32, Tf32, Bf16, Fp16, Fp64) names
//   Element     what gates, h and weights are stored in
//   Acc         what c and all sums are kept in
//   kTensorCore whether the recurrent product runs on mma
// and `round_operand`, applied to what enters a tensor core, `sigmoid` and `tanh`, and
// `tanh_rounded`: tanh of what is rounded to Element at once, the candidate gate and h.
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

// To a few units of the last place.
template <typename T>
struct ExactActivations {
  static __device__ __forceinline__ T sigmoid(T x) { return T(1) / (T(1) + std::exp(-x)); }
  static __device__ __forceinline__ T tanh(T x) { return std::tanh(x); }
  static __device__ __forceinline__ T tanh_rounded(T x) { return std::tanh(x); }
};
// To 3e-6 of the value, a hundredth of what rounding the operands of a tensor core costs, in a
// quarter of the instructions.
struct FastActivations {
  static __device__ __forceinline__ float sigmoid(float x) {
    return hw::reciprocal(1.0f + hw::exp2(-1.44269504f * x));  // log2(e)
  }
  // 1 - 2 / (1 + exp(2x)); near 0, where that cancels, x - x^3/3 + 2x^5/15 - 17x^7/315.
  static __device__ __forceinline__ float tanh(float x) {
    const float far = 1.0f - 2.0f * hw::reciprocal(1.0f + hw::exp2(2.88539008f * x));
    const float s = x * x;
    const float near = x + x * s * (-1.0f / 3 + s * (2.0f / 15 - s * (17.0f / 315)));
    return s < 0.0625f ? near : far;
  }
  static __device__ __forceinline__ float tanh_rounded(float x) { return tanh(x); }
};

struct Fp64 : ExactActivations<double> {
  using Element = double;
  using Acc = double;
  static constexpr bool kTensorCore = false;
  static __device__ __forceinline__ double round_operand(double x) { return x; }
};
struct Fp32 : ExactActivations<float> {
  using Element = float;
  using Acc = float;
  static constexpr bool kTensorCore = false;
  static __device__ __forceinline__ float round_operand(float x) { return x; }
};
struct Tf32 : FastActivations {
  using Element = float;
  using Acc = float;
  static constexpr bool kTensorCore = true;
  static __device__ __forceinline__ float round_operand(float x) { return hw::round_tf32(x); }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    hw::mma_tf32(c, a, b0, b1);
  }
};
struct Bf16 : FastActivations {
  using Element = Bfloat16;
  using Acc = float;
  static constexpr bool kTensorCore = true;
  static __device__ __forceinline__ Bfloat16 round_operand(Bfloat16 x) { return x; }
  // To 2^-11 of the value, a quarter of what rounding it to bfloat16 costs (2^-9), and one
  // instruction of some 20 cycles instead of a dozen of 70. Backward, where 1 - tanh^2 cancels, and
  // sigmoid, which is as close to 0 as to 1, need better.
  static __device__ __forceinline__ float tanh_rounded(float x) { return hw::tanh_approx(x); }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    hw::mma_bf16(c, a, b0, b1);
  }
};
struct Fp16 : FastActivations {
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

template <class Math, typename Acc = typename Math::Acc>
__device__ __forceinline__ Gates<Acc> activate(Acc i, Acc f, Acc g, Acc o) {
  return {Math::sigmoid(i), Math::sigmoid(f), Math::tanh_rounded(g), Math::sigmoid(o)};
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

template <typename Acc>
__device__ __forceinline__ Gates<Acc> operator+(const Gates<Acc>& a, const Gates<Acc>& b) {
  return {a.i + b.i, a.f + b.f, a.g + b.g, a.o + b.o};
}

// b_ih + b_hh of one unit.
template <typename Acc, typename T>
__device__ __forceinline__ Gates<Acc> load_bias(const void* b_ih, const void* b_hh, int64_t unit,
                                                int64_t hidden) {
  Gates<Acc> bias{};
  if (b_ih) bias = bias + load_gates<Acc>(static_cast<const T*>(b_ih) + unit, hidden);
  if (b_hh) bias = bias + load_gates<Acc>(static_cast<const T*>(b_hh) + unit, hidden);
  return bias;
}

// Element [row, unit] of a matrix that may be absent, which means zeros.
template <typename Acc, typename T>
__device__ __forceinline__ Acc load_or_zero(const T* matrix, int64_t row, int64_t stride,
                                            int64_t unit) {
  return matrix ? static_cast<Acc>(to_acc(matrix[row * stride + unit])) : Acc(0);
}

}  // namespace cuda
}  // namespace fused_lstm
