// Weights and biases of a layer as panels: those of the gates of 4 gates x `lanes` hidden units,
// the projection's of 4 x `lanes` columns; see kernels.h.
#pragma once

#include "layer.h"
#include "workspace.h"

namespace fused_lstm::cpu {

template <class T>
class GatePanels {
 public:
  GatePanels(const LstmProblem& problem, const Kernels<T>& kernels) : p_(problem), k_(kernels) {}

  int64_t count() const { return ceil_div(p_.hidden_size, k_.lanes); }
  int64_t input_size() const { return k_.panel_size(p_.input_size); }  // of one panel
  int64_t hidden_size() const { return k_.panel_size(p_.output_size()); }
  // Live units of a panel.
  int units(int64_t panel) const {
    return int(std::min<int64_t>(k_.lanes, p_.hidden_size - panel * k_.lanes));
  }

  // One panel of w [4H, k].
  void pack(const T* w, int64_t k, int64_t panel, T* out) const {
    const int n = units(panel);
    k_.pack_transposed({w, k, k, panel * k_.lanes, p_.hidden_size, {n, n, n, n}, out});
  }

  void pack_bias(const DirectionWeights<T>& w, int64_t panel, Acc<T>* out) const {
    for (int g = 0; g < 4; ++g) {
      for (int l = 0; l < k_.lanes; ++l) {
        const int64_t row = g * p_.hidden_size + panel * k_.lanes + l;
        const bool live = w.b_ih != nullptr && l < units(panel);
        out[g * k_.lanes + l] = live ? to_acc(w.b_ih[row]) + to_acc(w.b_hh[row]) : Acc<T>(0);
      }
    }
  }

  // Panels of w_hr [P, H].
  int64_t projection_count() const { return ceil_div(p_.proj_size, k_.width()); }
  int64_t projection_size() const { return k_.panel_size(p_.hidden_size); }
  void pack_projection(const T* w_hr, int64_t panel, T* out) const {
    const int64_t hidden = p_.hidden_size;
    PackTransposed<T> pack{w_hr, hidden, hidden, panel * k_.width(), k_.lanes, {}, out};
    for (int g = 0; g < 4; ++g) {
      const int64_t left = p_.proj_size - panel * k_.width() - g * k_.lanes;
      pack.live[g] = int(std::clamp<int64_t>(left, 0, k_.lanes));
    }
    k_.pack_transposed(pack);
  }

 private:
  const LstmProblem& p_;
  const Kernels<T>& k_;
};

}  // namespace fused_lstm::cpu
