// Workspace memory, and the conversions between an element type and what it accumulates in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "ranges.h"

namespace fused_lstm::cpu {

// Hands out cache-line aligned pieces of a workspace; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class U>
  U* take(int64_t count) {
    U* piece = base_ == nullptr ? nullptr : reinterpret_cast<U*>(base_ + used_);
    used_ += (size_t(count) * sizeof(U) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

// K as far as products read it: a multiple of what one multiply-add adds.
template <class T>
int64_t padded(int64_t k) {
  return ceil_div(k, kPair<T>) * kPair<T>;
}

inline float to_acc(bfloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline float to_acc(float value) { return value; }
inline double to_acc(double value) { return value; }

// Round to nearest even; a NaN stays one.
template <class T>
T from_acc(Acc<T> value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (value != value) return {uint16_t((bits >> 16) | 0x40u)};
    return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  } else {
    return value;
  }
}

template <class T>
void widen_all(const T* from, int64_t n, Acc<T>* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_acc(from[i]);
}
template <class T>
void narrow_all(const Acc<T>* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from_acc<T>(from[i]);
}

}  // namespace fused_lstm::cpu
