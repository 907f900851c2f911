// One layer with all its directions on the CPU: arguments and entry points. Pointers are checked,
// dense in their last dimension, and of one element type.
#pragma once

#include <cstddef>

#include "../problem.h"
#include "kernels.h"
#include "plan.h"

namespace fused_lstm::cpu {

template <class T>
struct DirectionWeights {
  const T* w_ih;  // [4H, I]
  const T* w_hh;  // [4H, P]
  const T* b_ih;  // [4H] or null
  const T* b_hh;
  const T* w_hr;  // [P, H] or null
  bool reverse;
};

template <class T>
struct DirectionGradients {  // null for what nobody asks for
  T* w_ih;
  T* w_hh;
  T* b_ih;
  T* b_hh;
  T* w_hr;
};

// The input: row b of step t begins at x + t * step_stride + b * row_stride where dense, and at
// x + (offset(t) + b) * row_stride where packed.
template <class T>
struct Input {
  const T* data;
  int64_t step_stride, row_stride;

  const T* at(const Steps& steps, int64_t t) const {
    return data + (steps.packed() ? steps.offset(t) * row_stride : t * step_stride);
  }
};

template <class T>
struct ForwardArgs {
  const Kernels<T>* kernels;
  LstmProblem problem;
  const Steps* steps;
  Input<T> x;
  const T* h0;  // [D, B, P] or null for zeros
  const T* c0;  // [D, B, H] or null for zeros
  DirectionWeights<T> weights[2];
  T* y;       // [N, D * P]
  T* h_n;     // [D, B, P]
  T* c_n;     // [D, B, H]
  T* gates;   // [D, N, 4H], null unless saved
  Acc<T>* c;  // [D, N, H], null unless saved
};

template <class T>
struct BackwardArgs {
  const Kernels<T>* kernels;
  LstmProblem problem;
  const Steps* steps;
  Input<T> x;
  const T* h0;
  const T* c0;
  DirectionWeights<T> weights[2];
  const T* y;
  const T* gates;
  const Acc<T>* c;
  const T* grad_y;    // [N, D * P] or null
  const T* grad_h_n;  // [D, B, P] or null
  const T* grad_c_n;  // [D, B, H] or null
  T* dx;              // [N, I] or null; likewise below
  T* dh0;
  T* dc0;
  DirectionGradients<T> grads[2];
  T* dgates;  // [D, N, 4H] of the pre-activations
};

// Bytes of workspace that the call needs under this plan.
template <class T>
size_t forward_workspace(const ForwardArgs<T>& args, const CpuPlan& plan);
template <class T>
size_t backward_workspace(const BackwardArgs<T>& args, const CpuPlan& plan);

// Returns false, having computed nothing, where plan.threads() threads are not to be had.
template <class T>
bool forward(const ForwardArgs<T>& args, const CpuPlan& plan, void* workspace);
template <class T>
bool backward(const BackwardArgs<T>& args, const CpuPlan& plan, void* workspace);

}  // namespace fused_lstm::cpu
