// The part of the backward pass that needs no order: gradients of the weights and of the input, as
// large products over all rows of a chunk of steps.
#pragma once

#include "backward_walk.h"

namespace fused_lstm::cpu {

template <class T>
class BackwardProducts {
 public:
  BackwardProducts(const BackwardArgs<T>& args, const CpuPlan& plan,
                   const BackwardLayout<T>& layout, const SavedStates<T>& saved,
                   const Position& position, Barrier& group_barrier,
                   const BackwardScratch<T>& scratch)
      : a_(args),
        p_(args.problem),
        plan_(plan),
        steps_(*args.steps),
        k_(*args.kernels),
        layout_(layout),
        saved_(saved),
        position_(position),
        group_barrier_(group_barrier),
        scratch_(scratch) {}

  // This member's share of the panels of W_hh, W_ih and W_hr.
  void pack_weights(int d) {
    if (plan_.in_place) return;
    const BackwardDirection<T>& b = layout_.direction(d);
    const DirectionWeights<T>& w = a_.weights[d];
    const int64_t gates = 4 * p_.hidden_size, input = p_.input_size, out = p_.output_size();
    const auto pack = [&](const Rows<const T>& rows, int64_t k, int64_t n, T* panels) {
      pack_panels(rows, k, n, position_.share_of(panels_of(n)), panels);
    };
    pack({w.w_hh, out}, gates, out, b.w_h);
    if (a_.dx != nullptr) pack({w.w_ih, input}, gates, input, b.w_x);
    if (p_.proj_size > 0) pack({w.w_hr, p_.hidden_size}, out, p_.hidden_size, b.w_r);
  }

  // Adds what walk steps [s0, s1) give, whose gates' gradients are there.
  void run(int d, const TimeOrder& order, int64_t s0, int64_t s1) {
    const Range rows = order.rows(s0, s1);
    const bool first = s1 == steps_.steps();
    if (a_.dx != nullptr) input_gradient(d, rows);
    if (a_.dgates != nullptr) keep_gate_gradients(d, rows);
    const DirectionGradients<T>& grads = a_.grads[d];
    if (grads.w_ih != nullptr || grads.w_hh != nullptr || layout_.direction(d).db != nullptr) {
      gate_weight_gradients(d, order, s0, s1, first);
    }
    if (grads.w_hr != nullptr) projection_gradient(d, rows, first);
  }

 private:
  int64_t panels_of(int64_t columns) const { return ceil_div(columns, k_.width()); }

  // These panels of a matrix [k, n].
  void pack_panels(const Rows<const T>& rows, int64_t k, int64_t n, Range share, T* panels) {
    for (int64_t panel = share.begin; panel < share.end; ++panel) {
      const int64_t col = panel * k_.width();
      k_.pack_rows(
          {rows, k, col, int(std::min(k_.width(), n - col)), panels + panel * k_.panel_size(k)});
    }
  }

  void gate_weight_gradients(int d, const TimeOrder& order, int64_t s0, int64_t s1, bool first) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const int64_t hidden = p_.hidden_size, out = p_.output_size();
    const int64_t rows = order.rows(s0, s1).size();
    const Range units = position_.share_of(4 * hidden, k_.lanes);
    const T* dgates_t = transposed(b, b.dgates, 4 * hidden, rows, units);
    pack_inputs_and_states(d, order, s0, s1);
    group_barrier_.wait();  // packed
    const Rows<const T> a = operands(dgates_t, units, rows);
    accumulate(a, units, rows, b.x_panels, p_.input_size, first, b.dw_ih);
    accumulate(a, units, rows, b.h_panels, out, first, b.dw_hh);
    if (b.db != nullptr) {
      if (first) std::fill(b.db + units.begin, b.db + units.end, Acc<T>(0));
      k_.row_sums(dgates_t, layout_.transposed_stride(), units.size(), rows, b.db + units.begin);
    }
  }

  // This member's share of the panels of both together: a small layer has one of each.
  void pack_inputs_and_states(int d, const TimeOrder& order, int64_t s0, int64_t s1) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const int64_t input = p_.input_size, out = p_.output_size();
    const int64_t x_panels = b.dw_ih == nullptr ? 0 : panels_of(input);
    const int64_t h_panels = b.dw_hh == nullptr ? 0 : panels_of(out);
    const Range share = position_.share_of(x_panels + h_panels);
    const Range x{std::min(share.begin, x_panels), std::min(share.end, x_panels)};
    const Range h{std::max(share.begin, x_panels) - x_panels,
                  std::max(share.end, x_panels) - x_panels};
    const int64_t rows = order.rows(s0, s1).size();
    const Rows<const T> listed{nullptr, 0, scratch_.rows};
    if (x.size() > 0) {
      gather_inputs(order, s0, s1);
      pack_panels(listed, rows, input, x, b.x_panels);
    }
    if (h.size() > 0) {
      gather_states(d, order, s0, s1);
      pack_panels(listed, rows, out, h, b.h_panels);
    }
  }

  // Columns `units` of a [rows, columns] chunk as rows of this member's part of the buffer.
  const T* transposed(const BackwardDirection<T>& b, const T* chunk, int64_t columns, int64_t rows,
                      Range units) {
    const int64_t stride = layout_.transposed_stride();
    T* out = b.transposed + units.begin * stride;
    if (units.size() > 0) {
      k_.transpose({chunk + units.begin, columns, rows, units.size(), out, stride});
    }
    return out;
  }

  Rows<const T> operands(const T* a_t, Range units, int64_t rows) {
    return k_.operands({a_t, layout_.transposed_stride()}, units.size(), rows, scratch_.operands);
  }

  // dw[units, n] (+)= a[units, rows] * panels
  void accumulate(const Rows<const T>& a, Range units, int64_t rows, const T* panels, int64_t n,
                  bool first, Acc<T>* dw) {
    if (dw == nullptr || units.size() == 0) return;
    PanelGemm<T, Acc<T>> g{};
    g.rows = units.size();
    g.k = rows;
    g.a = a;
    g.c = {dw + units.begin * n, n};
    g.init_stride = n;
    const int64_t size = k_.panel_size(rows);
    for_panels({0, n}, k_.width(), false, [&](int64_t panel, int64_t col, int cols, int64_t next) {
      g.panel = panels + panel * size;
      g.ahead = next < 0 ? nullptr : panels + next * size;
      g.init = first ? nullptr : g.c.base + col;
      g.col = col;
      g.cols = cols;
      k_.gemm(g);
    });
  }

  // Where the input rows of walk steps [s0, s1) lie, in the order of the chunk.
  void gather_inputs(const TimeOrder& order, int64_t s0, int64_t s1) {
    const int64_t first_row = order.rows(s0, s1).begin;
    for (int64_t s = s0; s < s1; ++s) {
      const T** rows = scratch_.rows + order.offset(s) - first_row;
      for (int64_t b = 0; b < order.size(s); ++b) rows[b] = a_.x.row(steps_, order.time(s), b);
    }
  }

  // Likewise the outputs h_{s-1} that went into these steps; null for a zero initial state.
  void gather_states(int d, const TimeOrder& order, int64_t s0, int64_t s1) {
    const int64_t first_row = order.rows(s0, s1).begin, out = p_.output_size();
    const int64_t y_stride = p_.directions * out;
    for (int64_t s = s0; s < s1; ++s) {
      const T** rows = scratch_.rows + order.offset(s) - first_row;
      const int64_t continued = order.continued(s);
      for (int64_t b = 0; b < continued; ++b) {
        rows[b] = a_.y + steps_.place(order.offset(s - 1) + b) * y_stride + d * out;
      }
      for (int64_t b = continued; b < order.size(s); ++b) {
        rows[b] = a_.h0 == nullptr ? nullptr : a_.h0 + (d * p_.batch + b) * out;
      }
    }
  }

  // Where the gradients of these rows of the input go.
  Rows<T> dx_rows(int d, Range rows) {
    T* dx = layout_.direction(d).dx;
    const int64_t input = p_.input_size;
    if (!steps_.placed() || d != 0) return {dx + rows.begin * input, input};
    for (int64_t i = 0; i < rows.size(); ++i) {
      scratch_.dx_rows[i] = dx + steps_.place(rows.begin + i) * input;
    }
    return {nullptr, 0, scratch_.dx_rows};
  }

  // dx = dgates W_ih for this member's share of the chunk's rows, or of its columns where the
  // weights are read in place: a row may be all there is.
  void input_gradient(int d, Range rows) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const int64_t gates = 4 * p_.hidden_size, input = p_.input_size;
    if constexpr (std::is_same_v<T, Acc<T>>) {
      if (plan_.in_place) {
        const Range columns = position_.share_of(input, k_.lanes);
        return k_.few_rows({rows.size(),
                            gates,
                            {b.dgates, gates},
                            a_.weights[d].w_ih,
                            input,
                            dx_rows(d, rows),
                            columns.begin,
                            columns.size()});
      }
    }
    const Range share = position_.share_of(rows.size());
    if (share.size() == 0) return;
    PanelGemm<T, T> g{};
    g.rows = share.size();
    g.k = gates;
    g.a = k_.operands({b.dgates + share.begin * gates, gates}, g.rows, gates, scratch_.operands);
    g.c = dx_rows(d, {rows.begin + share.begin, rows.begin + share.end});
    const int64_t size = k_.panel_size(gates);
    for_panels({0, input}, k_.width(), false,
               [&](int64_t panel, int64_t col, int cols, int64_t next) {
                 g.panel = b.w_x + panel * size;
                 g.ahead = next < 0 ? nullptr : b.w_x + next * size;
                 g.col = col;
                 g.cols = cols;
                 k_.gemm_out(g);
               });
  }

  // This member's share of the chunk's rows, for whoever asked.
  void keep_gate_gradients(int d, Range rows) {
    const int64_t gates = 4 * p_.hidden_size;
    const Range share = position_.share_of(rows.size());
    const T* from = layout_.direction(d).dgates + share.begin * gates;
    T* to = a_.dgates + (d * steps_.rows() + rows.begin + share.begin) * gates;
    std::copy_n(from, share.size() * gates, to);
  }

  // dW_hr (+)= dp^T m with m = o * tanh(c).
  void projection_gradient(int d, Range rows, bool first) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const int64_t hidden = p_.hidden_size, out = p_.output_size(), n = rows.size();
    const Range share = position_.share_of(n);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t row = rows.begin + i;
      k_.hidden(saved_.gates(d, row) + 3 * hidden, saved_.c(d, row), hidden, b.m + i * hidden);
    }
    group_barrier_.wait();  // hidden; and nobody needs dgates transposed any more
    pack_panels({b.m, hidden}, n, hidden, position_.share_of(panels_of(hidden)), b.m_panels);
    const Range units = position_.share_of(out, k_.lanes);
    const T* dp_t = transposed(b, b.dp, out, n, units);
    group_barrier_.wait();  // packed
    accumulate(operands(dp_t, units, n), units, n, b.m_panels, hidden, first, b.dw_hr);
  }

  const BackwardArgs<T>& a_;
  const LstmProblem& p_;
  const CpuPlan& plan_;
  const Steps& steps_;
  const Kernels<T>& k_;
  const BackwardLayout<T>& layout_;
  const SavedStates<T>& saved_;
  const Position position_;
  Barrier& group_barrier_;
  const BackwardScratch<T>& scratch_;
};

}  // namespace fused_lstm::cpu
