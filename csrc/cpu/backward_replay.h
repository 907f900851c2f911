// The gates and c of a block of steps, computed again where the forward pass kept neither.
//
// All outputs h are there, so the gates of a step need nothing of the step before but c, which
// belongs to one unit: a member computes its own panels of units over the whole block and waits for
// nobody. Each sum is that of the forward pass, in its order, to the last bit.
#pragma once

#include "backward_saved.h"
#include "gate_panels.h"

namespace fused_lstm::cpu {

template <class T>
class BackwardReplay {
 public:
  BackwardReplay(const BackwardArgs<T>& args, const CpuPlan& plan, const BackwardLayout<T>& layout,
                 const Position& position, const BackwardScratch<T>& scratch)
      : a_(args),
        p_(args.problem),
        plan_(plan),
        steps_(*args.steps),
        k_(*args.kernels),
        layout_(layout),
        scratch_(scratch),
        saved_(steps_, p_.compact),
        gate_panels_(p_, k_),
        panels_(position.share_of(gate_panels_.count())) {}

  // This member's units of walk steps [s0, s1), s0 the first of a block.
  void run(int d, const TimeOrder& order, int64_t s0, int64_t s1) {
    first_row_ = order.rows(s0, s1).begin;
    for (int64_t panel = panels_.begin; panel < panels_.end; ++panel) {
      prepare(d, panel);
      for (int64_t s = s0; s < s1; ++s) step(d, order, s, s == s0, panel);
    }
  }

 private:
  void prepare(int d, int64_t panel) {
    if (plan_.algorithm == Algorithm::dot) return;
    const DirectionWeights<T>& w = a_.weights[d];
    gate_panels_.pack(w.w_ih, p_.input_size, panel, scratch_.w_x);
    gate_panels_.pack(w.w_hh, p_.output_size(), panel, scratch_.w_h);
    gate_panels_.pack_bias(w, panel, scratch_.bias);
  }

  void step(int d, const TimeOrder& order, int64_t s, bool first, int64_t panel) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const DirectionWeights<T>& w = a_.weights[d];
    const int64_t hidden = p_.hidden_size, row = order.offset(s) - first_row_;
    GateDot<T> dot{};
    GateStep<T>& g = dot.step;
    g.rows = order.size(s);
    g.unit = panel * k_.lanes;
    g.units = gate_panels_.units(panel);
    g.hidden = hidden;
    g.x_size = p_.input_size;
    list_rows(d, order, s);
    g.x.list = scratch_.x_rows;
    g.h_prev.list = scratch_.h_rows;
    g.h_size = s == 0 && a_.h0 == nullptr ? 0 : p_.output_size();
    set_c(d, order, s, first, &g);
    g.c_next = {b.c_again + row * hidden, hidden};
    g.gates = {b.gates_again + row * 4 * hidden, 4 * hidden};
    g.h_next = {b.h_again, hidden};
    if (plan_.algorithm == Algorithm::dot) {
      g.w_x = w.w_ih;
      g.w_h = w.w_hh;
      dot.b_ih = w.b_ih;
      dot.b_hh = w.b_hh;
      return k_.gate_dot(dot);
    }
    g.x = k_.operands(g.x, g.rows, g.x_size, scratch_.x_operands);
    if (g.h_size > 0) g.h_prev = k_.operands(g.h_prev, g.rows, g.h_size, scratch_.h_operands);
    g.w_x = scratch_.w_x;
    g.w_h = scratch_.w_h;
    g.init = scratch_.bias;
    k_.gate_step(g);
  }

  // Where x and the h before it lie, of all rows of the step.
  void list_rows(int d, const TimeOrder& order, int64_t s) {
    const int64_t out = p_.output_size(), y_stride = p_.directions * out;
    const int64_t size = order.size(s), continued = order.continued(s), t = order.time(s);
    for (int64_t i = 0; i < size; ++i) {
      scratch_.x_rows[i] = a_.x.row(steps_, t, i);
      if (i < continued) {
        scratch_.h_rows[i] = a_.y + steps_.place(order.offset(s - 1) + i) * y_stride + d * out;
      } else {
        scratch_.h_rows[i] =
            a_.h0 == nullptr ? layout_.direction(d).h0 : a_.h0 + (d * p_.batch + i) * out;
      }
    }
  }

  // c before the step: kept where the block begins, computed just now elsewhere, and the initial
  // one of rows that begin here.
  void set_c(int d, const TimeOrder& order, int64_t s, bool first, GateStep<T>* g) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const int64_t hidden = p_.hidden_size, continued = order.continued(s);
    for (int64_t i = 0; i < g->rows; ++i) {
      const int64_t before = i < continued ? order.offset(s - 1) + i : 0;
      const Acc<T>*& c = scratch_.c_again_rows[i];
      if (i >= continued) {
        c = b.c0 + i * hidden;
      } else if (first) {
        c = a_.c + (d * saved_.rows() + saved_.of(before)) * hidden;
      } else {
        c = b.c_again + (before - first_row_) * hidden;
      }
    }
    g->c_prev.list = scratch_.c_again_rows;
  }

  const BackwardArgs<T>& a_;
  const LstmProblem& p_;
  const CpuPlan& plan_;
  const Steps& steps_;
  const Kernels<T>& k_;
  const BackwardLayout<T>& layout_;
  const BackwardScratch<T>& scratch_;
  const Places saved_;
  const GatePanels<T> gate_panels_;
  const Range panels_;
  int64_t first_row_ = 0;  // of the block, among all rows
};

}  // namespace fused_lstm::cpu
