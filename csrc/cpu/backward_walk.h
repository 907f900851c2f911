// The part of the backward pass that has to follow the steps: gradients of the pre-activations,
// and of h and c, from the last step to the first.
#pragma once

#include "backward_saved.h"
#include "members.h"

namespace fused_lstm::cpu {

// Calls f(panel, first column, columns, next panel or -1) for the panels that cover `columns`,
// whose begin is one's.
template <class F>
void for_panels(Range columns, int64_t width, bool downwards, const F& f) {
  const Range panels{columns.begin / width, ceil_div(columns.end, width)};
  if (columns.size() == 0) return;
  for_each_by_turns(panels, downwards, [&](int64_t panel, int64_t next) {
    const int64_t col = panel * width;
    f(panel, col, int(std::min(width, columns.end - col)), next);
  });
}

template <class T>
class BackwardWalk {
 public:
  BackwardWalk(const BackwardArgs<T>& args, const CpuPlan& plan, const BackwardLayout<T>& layout,
               const SavedStates<T>& saved, const Position& position, Barrier& row_barrier,
               const BackwardScratch<T>& scratch)
      : a_(args),
        p_(args.problem),
        plan_(plan),
        steps_(*args.steps),
        k_(*args.kernels),
        layout_(layout),
        saved_(saved),
        row_barrier_(row_barrier),
        scratch_(scratch),
        rows_(steps_, position.row_group, plan.row_groups),
        step_rows_(Places(steps_, false), rows_),
        out_units_(part_of(p_.output_size(), position.unit_group, plan.unit_groups, k_.width())),
        hidden_units_(part_of(p_.hidden_size, position.unit_group, plan.unit_groups, k_.width())),
        clearing_(args.dx, p_.input_size, steps_, position, plan,
                  ceil_div(p_.directions, plan.direction_groups) * steps_.steps()) {}

  // Gradients of the pre-activations of walk steps [s0, s1), and dh for what comes before s0.
  void run(int d, const TimeOrder& order, int64_t s0, int64_t s1) {
    first_row_ = order.rows(s0, s1).begin;
    for (int64_t s = s1 - 1; s >= s0; --s) {
      clearing_.advance();
      if (s < s1 - 1) pull_back(d, order, s + 1);
      if (p_.proj_size > 0) {
        project_back(d, order, s);
        row_barrier_.wait();
        unproject(d, order, s);
      }
      gradients(d, order, s);
      if (s > s0) row_barrier_.wait();
    }
  }

  // dh = dgates W_hh for this member's rows of walk step s and its columns. Within a chunk run()
  // does it; between two, whoever has waited for all dgates of step s.
  void pull_back(int d, const TimeOrder& order, int64_t s) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const Weights w{b.w_h, a_.weights[d].w_hh, p_.output_size()};
    step_product(order, s, b.dgates, 4 * p_.hidden_size, w, out_units_, b.dh);
  }

 private:
  // A matrix [k, n], in panels and as it lies.
  struct Weights {
    const T *panels, *rows;
    int64_t n;
  };

  // dm = dp W_hr: the gradient of o * tanh(c).
  void unproject(int d, const TimeOrder& order, int64_t s) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const Weights w{b.w_r, a_.weights[d].w_hr, p_.hidden_size};
    step_product(order, s, b.dp, p_.output_size(), w, hidden_units_, b.dm);
  }

  // c[B, n] = a[chunk, k] w, for this member's rows of walk step s and these columns.
  void step_product(const TimeOrder& order, int64_t s, const T* a, int64_t k, const Weights& w,
                    Range columns, Acc<T>* c) {
    const int64_t rows = rows_.count(order.size(s));
    const Rows<const T> mine_of_a = rows_.of(a + (order.offset(s) - first_row_) * k, k);
    if (plan_.in_place) {
      return k_.few_rows(
          {rows, k, mine_of_a, w.rows, w.n, rows_.of(c, w.n), columns.begin, columns.size()});
    }
    const T* panels = w.panels;
    PanelGemm<T, Acc<T>> g{};
    g.rows = rows;
    g.k = k;
    g.a = k_.operands(mine_of_a, g.rows, k, scratch_.operands);
    g.c = rows_.of(c, w.n);
    const int64_t size = k_.panel_size(k);
    for_panels(columns, k_.width(), s % 2 != 0,
               [&](int64_t panel, int64_t col, int cols, int64_t next) {
                 g.panel = panels + panel * size;
                 g.ahead = next < 0 ? nullptr : panels + next * size;
                 g.col = col;
                 g.cols = cols;
                 k_.gemm(g);
               });
  }

  // dp = dh + dy: the gradient of the projected output, this member's rows and columns.
  void project_back(int d, const TimeOrder& order, int64_t s) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const int64_t out = p_.output_size(), y_stride = p_.directions * out;
    const Rows<const Acc<T>> dh = rows_.of<const Acc<T>>(b.dh, out);
    const Rows<T> dp = rows_.of(b.dp + (order.offset(s) - first_row_) * out, out);
    Rows<const T> dy;
    const int64_t count = rows_.count(order.size(s));
    if (a_.grad_y != nullptr) {
      dy = step_rows_.at(a_.grad_y + d * out, y_stride, order.offset(s), count, scratch_.dy_rows);
    }
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t i = out_units_.begin; i < out_units_.end; ++i) {
        const Acc<T> later = dh.at(j)[i];
        dp.at(j)[i] = from_acc<T>(dy.given() ? later + to_acc(dy.at(j)[i]) : later);
      }
    }
  }

  // dgates and dc of walk step s, this member's rows and units.
  void gradients(int d, const TimeOrder& order, int64_t s) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const int64_t hidden = p_.hidden_size, gates = 4 * hidden, out = p_.output_size();
    const int64_t here = order.offset(s), y_stride = p_.directions * out;
    const bool projected = p_.proj_size > 0;
    GateGradient<T> g{};
    g.rows = rows_.count(order.size(s));
    g.hidden = hidden;
    g.gates = saved_.gates(d, order, s, g.rows, rows_, scratch_.gates_rows);
    g.c = saved_.c(d, order, s, g.rows, rows_, scratch_.c_here_rows);
    g.c_prev = state_before(d, order, s);
    if (!projected && a_.grad_y != nullptr) {
      g.dy = step_rows_.at(a_.grad_y + d * out, y_stride, here, g.rows, scratch_.dy_rows);
    }
    if (a_.grad_c != nullptr) {
      g.dc_out = step_rows_.at(a_.grad_c + d * steps_.tensor_rows() * hidden, hidden, here, g.rows,
                               scratch_.dc_rows);
    }
    g.dh = rows_.of<const Acc<T>>(projected ? b.dm : b.dh, hidden);
    g.dc = rows_.of(b.dc, hidden);
    g.dgates = rows_.of(b.dgates + (here - first_row_) * gates, gates);
    for (g.unit = hidden_units_.begin; g.unit < hidden_units_.end; g.unit += k_.lanes) {
      g.units = int(std::min<int64_t>(k_.lanes, hidden_units_.end - g.unit));
      k_.gate_gradient(g);
    }
  }

  // c before walk step s: of the step before, and the initial one of rows that begin here.
  Rows<const Acc<T>> state_before(int d, const TimeOrder& order, int64_t s) const {
    const int64_t hidden = p_.hidden_size;
    const int64_t live = rows_.count(order.size(s)), continued = rows_.count(order.continued(s));
    const Rows<const Acc<T>> first = rows_.of<const Acc<T>>(layout_.direction(d).c0, hidden);
    if (continued == 0) return first;
    Rows<const Acc<T>> rows = saved_.c(d, order, s - 1, continued, rows_, scratch_.c_rows);
    if (continued < live) {
      for (int64_t j = 0; j < live; ++j) scratch_.c_rows[j] = (j < continued ? rows : first).at(j);
      rows.list = scratch_.c_rows;
    }
    return rows;
  }

  const BackwardArgs<T>& a_;
  const LstmProblem& p_;
  const CpuPlan& plan_;
  const Steps& steps_;
  const Kernels<T>& k_;
  const BackwardLayout<T>& layout_;
  const SavedStates<T>& saved_;
  Barrier& row_barrier_;
  const BackwardScratch<T>& scratch_;
  const MemberRows rows_;
  const StepRows step_rows_;
  const Range out_units_;     // this member's columns of dh, cut at panels
  const Range hidden_units_;  // and of the gates; the same where there is no projection
  Clearing<T> clearing_;      // of dx
  int64_t first_row_ = 0;     // of the chunk, among all rows
};

}  // namespace fused_lstm::cpu
