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

// Weights and biases as panels; see gate_panels.h.
template <class T>
struct WeightPanels {
  T *w_x, *w_h, *w_r;
  Acc<T>* bias;
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
// x + (offset(t) + b) * row_stride where packed. Where a row has several members, dense row b is
// member b % members of row b / members.
template <class T>
struct Input {
  const T* data;
  int64_t step_stride, row_stride;
  int64_t batch;  // rows of a dense step
  int64_t members = 1, member_stride = 0;

  const T* row(const Steps& steps, int64_t t, int64_t b) const {
    if (steps.placed()) {
      const int64_t place = steps.place(steps.offset(t) + b);
      return data + place / batch * step_stride + place % batch * row_stride;
    }
    const T* first = data + (steps.packed() ? steps.offset(t) * row_stride : t * step_stride);
    if (members == 1) return first + b * row_stride;
    return first + b / members * row_stride + b % members * member_stride;
  }
};

// Whether c is kept that walk step s leaves: those before blocks of keep_every steps, counted from
// the last step, where the backward pass begins.
inline bool keeps_c(const LstmProblem& p, int64_t s) {
  return p.save && (p.keep_every == 0 || (p.steps - 1 - s) % p.keep_every == 0);
}

template <class T>
struct ForwardArgs {
  const Kernels<T>* kernels;
  LstmProblem problem;
  const Steps* steps;
  Input<T> x;
  const T* h0;  // [D, B, P] or null for zeros
  const T* c0;  // [D, B, H] or null for zeros
  DirectionWeights<T> weights[2];
  WeightPanels<T> panels;  // where p.prepacked, of one direction
  T* y;                    // [N, D * P]
  T* h_n;                  // [D, B, P]
  T* c_n;                  // [D, B, H]
  T* gates;                // [D, S, 4H], null unless saved; S = N, or the live ones if p.compact
  Acc<T>* c;               // [D, S, H], null unless saved; where p.keep_every, of kept steps only
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
  const T* gates;  // null where p.keep_every
  const Acc<T>* c;
  const T* grad_y;       // [N, D * P] or null
  const Acc<T>* grad_c;  // [D, N, H] or null; never where p.compact
  const T* grad_h_n;     // [D, B, P] or null
  const T* grad_c_n;     // [D, B, H] or null
  T* dx;                 // [N, I] or null; likewise below
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
