// Plan D: the gates of one time step, forward and backward, after a GEMM has made the recurrent
// product. Elementwise, so every shape is covered, with projection or without; both directions of a
// layer go in one launch, as grid.y.
//
// A thread has kVector neighbouring units of one row: as many as make 16 bytes of sums where all
// addresses allow that (gate_step_vector), else 1.
//
// Launch: grid (gate_step_blocks(rows, hidden, kVector), directions), kGateStepThreads threads, no
// shared memory. A thread reads all it needs before it writes, so outputs may share memory with
// inputs where params.h says so.
#pragma once

#include <cstddef>

#include "math.cuh"

namespace fused_lstm {
namespace cuda {

constexpr int kGateStepThreads = 256;
// rows: live rows of the direction that has the most.
constexpr int64_t gate_step_blocks(int64_t rows, int64_t hidden, int vector) {
  return ceil_div(rows * hidden / vector, kGateStepThreads);
}

template <class Math>
constexpr int kGateStepVector = 16 / static_cast<int>(sizeof(typename Math::Acc));

// ---- host: whether all rows begin at multiples of kGateStepVector elements ----

template <class Math>
class VectorCheck {
 public:
  // Of T, or of Acc where said; absent ones are nowhere.
  void address(const void* data, size_t size = sizeof(typename Math::Element)) {
    fits_ &= reinterpret_cast<uintptr_t>(data) % (size * kGateStepVector<Math>) == 0;
  }
  void stride(int64_t elements) { fits_ &= elements % kGateStepVector<Math> == 0; }
  int vector() const { return fits_ ? kGateStepVector<Math> : 1; }

 private:
  bool fits_ = true;
};

template <class Math>
int gate_step_vector(const GateForwardParams& p, int directions) {
  constexpr size_t kAcc = sizeof(typename Math::Acc);
  VectorCheck<Math> check;
  for (const int64_t n :
       {p.hidden, p.gates_x_stride, p.gates_h_stride, p.h_stride, p.gates_stride}) {
    check.stride(n);
  }
  for (int i = 0; i < directions; ++i) {
    const GateForwardDirection& d = p.direction[i];
    for (const void* data :
         {d.gates_x, d.gates_h, static_cast<const void*>(d.h), static_cast<const void*>(d.h_carry),
          static_cast<const void*>(d.gates)})
      check.address(data);
    for (const void* data : {d.b_ih, d.b_hh}) check.address(data);
    for (const void* data : {d.c_carry, d.c}) check.address(data, kAcc);
  }
  return check.vector();
}

template <class Math>
int gate_step_vector(const GateBackwardParams& p, int directions) {
  constexpr size_t kAcc = sizeof(typename Math::Acc);
  VectorCheck<Math> check;
  for (const int64_t n :
       {p.hidden, p.dh_a_stride, p.dh_b_stride, p.gates_stride, p.c0_stride, p.dgates_stride}) {
    check.stride(n);
  }
  for (int i = 0; i < directions; ++i) {
    const GateBackwardDirection& d = p.direction[i];
    for (const void* data : {d.dh_a, d.dh_b, d.gates, d.c0, static_cast<const void*>(d.dgates)})
      check.address(data);
    for (const void* data : {d.c, d.c_prev, static_cast<const void*>(d.dc_carry)})
      check.address(data, kAcc);
  }
  return check.vector();
}

// ---- n neighbouring elements in one access ----

template <typename T, int n>
struct alignas(sizeof(T) * n) Vector {
  T at[n];
};
template <int n, typename T>
__device__ __forceinline__ Vector<T, n> load_vector(const T* from) {
  return *reinterpret_cast<const Vector<T, n>*>(from);
}
template <int n, typename T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, n>& v) {
  *reinterpret_cast<Vector<T, n>*>(to) = v;
}
// Adds the n elements, if there are any.
template <int n, typename T, typename Acc>
__device__ __forceinline__ void add_vector(Vector<Acc, n>& to, const T* from) {
  if (!from) return;
  const Vector<T, n> v = load_vector<n>(from);
#pragma unroll
  for (int i = 0; i < n; ++i) to.at[i] += to_acc(v.at[i]);
}
template <int n, typename T, typename Acc>
__device__ __forceinline__ void add_gates(Vector<Acc, n> (&to)[kGates], const T* at,
                                          int64_t apart) {
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) add_vector<n>(to[gate], at + gate * apart);
}
template <int n, typename Acc>
__device__ __forceinline__ Gates<Acc> gates_at(const Vector<Acc, n> (&v)[kGates], int i) {
  return {v[0].at[i], v[1].at[i], v[2].at[i], v[3].at[i]};
}
template <int n, typename T>
__device__ __forceinline__ void set_gates(Vector<T, n> (&v)[kGates], int i, const Gates<T>& a) {
  v[0].at[i] = a.i;
  v[1].at[i] = a.f;
  v[2].at[i] = a.g;
  v[3].at[i] = a.o;
}
template <int n, typename T>
__device__ __forceinline__ void store_gate_vectors(T* at, int64_t apart,
                                                   const Vector<T, n> (&v)[kGates]) {
#pragma unroll
  for (int gate = 0; gate < kGates; ++gate) store_vector<n>(at + gate * apart, v[gate]);
}

// Row and first unit of this thread.
template <int kVector>
struct GateStepPlace {
  int64_t row, unit;
  bool valid;

  __device__ __forceinline__ GateStepPlace(int64_t rows, int64_t hidden) {
    const int64_t index = hw::block_x() * kGateStepThreads + hw::thread();
    const int64_t per_row = hidden / kVector;
    valid = index < rows * per_row;
    // Division by 32 bits is several times faster.
    row = rows * per_row <= UINT32_MAX
              ? static_cast<uint32_t>(index) / static_cast<uint32_t>(per_row)
              : index / per_row;
    unit = (index - row * per_row) * kVector;
  }
};

template <class Math, int kVector, bool kSave>
__global__ void __launch_bounds__(kGateStepThreads)
    gate_step_forward(const __grid_constant__ GateForwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  const GateForwardDirection& d = p.direction[hw::block_y()];
  const GateStepPlace<kVector> place(d.rows, p.hidden);
  if (!place.valid) return;
  const int64_t row = place.row, unit = place.unit, index = row * p.hidden + unit;

  Vector<Acc, kVector> z[kGates] = {};
  add_gates(z, static_cast<const T*>(d.gates_x) + row * p.gates_x_stride + unit, p.hidden);
  if (d.gates_h) {
    add_gates(z, static_cast<const T*>(d.gates_h) + row * p.gates_h_stride + unit, p.hidden);
  }
  if (d.b_ih) add_gates(z, static_cast<const T*>(d.b_ih) + unit, p.hidden);
  if (d.b_hh) add_gates(z, static_cast<const T*>(d.b_hh) + unit, p.hidden);
  Acc* carry = static_cast<Acc*>(d.c_carry) + index;
  Vector<Acc, kVector> c = load_vector<kVector>(carry);
  Vector<T, kVector> h, gates[kGates];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const Gates<Acc> zi = gates_at(z, i);
    const Gates<Acc> a = activate<Math>(zi.i, zi.f, zi.g, zi.o);
    c.at[i] = cell_state(a, c.at[i]);
    h.at[i] = From<T>::acc(hidden_state(a, Math::tanh_rounded(c.at[i])));
    set_gates(gates, i, gates_of<T>(a));
  }
  store_vector(carry, c);
  store_vector(static_cast<T*>(d.h) + row * p.h_stride + unit, h);
  if (d.h_carry) store_vector(static_cast<T*>(d.h_carry) + index, h);
  if (kSave) {
    store_gate_vectors(static_cast<T*>(d.gates) + row * p.gates_stride + unit, p.hidden, gates);
    store_vector(static_cast<Acc*>(d.c) + index, c);
  }
}

template <class Math, int kVector>
__global__ void __launch_bounds__(kGateStepThreads)
    gate_step_backward(const __grid_constant__ GateBackwardParams p) {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  const GateBackwardDirection& d = p.direction[hw::block_y()];
  const GateStepPlace<kVector> place(d.rows, p.hidden);
  if (!place.valid) return;
  const int64_t row = place.row, unit = place.unit, index = row * p.hidden + unit;
  // Element (row, unit) of a matrix of T; nullptr where that is absent.
  const auto element = [&](const void* matrix, int64_t stride) {
    return matrix ? static_cast<const T*>(matrix) + row * stride + unit : nullptr;
  };

  Vector<Acc, kVector> a[kGates] = {}, c_prev = {}, dh = {};
  add_gates(a, element(d.gates, p.gates_stride), p.hidden);
  const Vector<Acc, kVector> c = load_vector<kVector>(static_cast<const Acc*>(d.c) + index);
  if (row < d.prev_rows) {
    c_prev = load_vector<kVector>(static_cast<const Acc*>(d.c_prev) + index);
  } else {
    add_vector(c_prev, element(d.c0, p.c0_stride));
  }
  add_vector(dh, element(d.dh_a, p.dh_a_stride));
  add_vector(dh, element(d.dh_b, p.dh_b_stride));

  Acc* carry = static_cast<Acc*>(d.dc_carry) + index;
  Vector<Acc, kVector> dc = load_vector<kVector>(carry);
  Vector<T, kVector> dgates[kGates];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    set_gates(dgates, i,
              gates_of<T>(gate_gradients(gates_at(a, i), c_prev.at[i], Math::tanh(c.at[i]),
                                         dh.at[i], dc.at[i])));
  }
  store_vector(carry, dc);
  store_gate_vectors(static_cast<T*>(d.dgates) + row * p.dgates_stride + unit, p.hidden, dgates);
}

// ---- host: the instance for gate_step_vector's answer ----

template <class Math>
auto gate_step_forward_kernel(int vector, bool save) {
  constexpr int kVector = kGateStepVector<Math>;
  if (vector == 1)
    return save ? &gate_step_forward<Math, 1, true> : &gate_step_forward<Math, 1, false>;
  return save ? &gate_step_forward<Math, kVector, true> : &gate_step_forward<Math, kVector, false>;
}
template <class Math>
auto gate_step_backward_kernel(int vector) {
  return vector == 1 ? &gate_step_backward<Math, 1>
                     : &gate_step_backward<Math, kGateStepVector<Math>>;
}

}  // namespace cuda
}  // namespace fused_lstm
