// The LSTM cell and its derivative, once, for the vector code of the CPU and the kernels of CUDA.
//
//   c_t = f * c_{t-1} + i * g          h_t = o * tanh(c_t)
//
// with i, f, o = sigmoid(...) and g = tanh(...) of the pre-activations
// W_ih x_t + b_ih + W_hh h_{t-1} + b_hh. V is a scalar or a vector of hidden units.
#pragma once

#include "inline.h"

namespace fused_lstm {

// Activated gates, or the gradients of their pre-activations.
template <class V>
struct Gates {
  V i, f, g, o;
};

template <class V>
FUSED_LSTM_INLINE V cell_state(const Gates<V>& a, V c_prev) {
  return a.f * c_prev + a.i * a.g;
}

template <class V>
FUSED_LSTM_INLINE V hidden_state(const Gates<V>& a, V tanh_c) {
  return a.o * tanh_c;
}

// Gradients of the pre-activations, from the gradient dh of h_t and the gradient dc that step t + 1
// left for c_t. On return dc is what step t leaves for c_{t-1}.
// sigmoid' = s (1 - s), tanh' = 1 - t^2.
template <class V>
FUSED_LSTM_INLINE Gates<V> gate_gradients(const Gates<V>& a, V c_prev, V tanh_c, V dh, V& dc) {
  const V one = V{} + 1;
  const V dc_t = dc + dh * a.o * (one - tanh_c * tanh_c);
  Gates<V> d;
  d.i = dc_t * a.g * a.i * (one - a.i);
  d.f = dc_t * c_prev * a.f * (one - a.f);
  d.g = dc_t * a.i * (one - a.g * a.g);
  d.o = dh * tanh_c * a.o * (one - a.o);
  dc = dc_t * a.f;
  return d;
}

}  // namespace fused_lstm
