// Forward pass of one layer: packs the weights, then walks the steps of each direction.
#include "forward_layout.h"
#include "gate_panels.h"
#include "layer.h"
#include "members.h"

namespace fused_lstm::cpu {
namespace {

template <class T>
class ForwardMember {
 public:
  ForwardMember(const ForwardArgs<T>& args, const CpuPlan& plan, const ForwardLayout<T>& layout,
                TeamBarriers& barriers, int rank)
      : a_(args),
        p_(args.problem),
        plan_(plan),
        steps_(*args.steps),
        k_(*args.kernels),
        layout_(layout),
        position_(plan, rank),
        group_barrier_(barriers.group(position_)),
        row_barrier_(barriers.rows(position_)),
        rows_(steps_, position_.row_group, plan.row_groups),
        step_rows_(Places(steps_, false), rows_),
        saved_(steps_, p_.compact),
        saved_rows_(saved_, rows_),
        gate_panels_(p_, k_),
        panels_(part_of(gate_panels_.count(), position_.unit_group, plan.unit_groups)),
        clearing_(a_.y, p_.directions * p_.output_size(), steps_, position_, plan,
                  ceil_div(p_.directions, plan.direction_groups) * steps_.steps() * panels_.size()),
        scratch_(layout.scratch(rank)) {}

  void run() {
    for (int d = position_.direction_group; d < p_.directions; d += plan_.direction_groups) {
      prepare(d);
      group_barrier_.wait();
      walk(d);
      group_barrier_.wait();
      finish(d);
    }
  }

 private:
  int64_t input_panel() const { return gate_panels_.input_size(); }
  int64_t hidden_panel() const { return gate_panels_.hidden_size(); }
  int64_t proj_panel() const { return gate_panels_.projection_size(); }
  bool batched_input() const { return scratch_.gates_x != nullptr; }
  bool keeps(int64_t s) const { return a_.c != nullptr && keeps_c(p_, s); }

  // This member's share of the panels, the bias and the initial state.
  void prepare(int d) {
    const ForwardDirection<T>& b = layout_.direction(d);
    const Range state = position_.share_of(p_.batch * p_.hidden_size);
    if (a_.c0 != nullptr) {
      widen_all<T>(a_.c0 + d * p_.batch * p_.hidden_size + state.begin, state.size(),
                   b.c0 + state.begin);
    } else {
      std::fill(b.c0 + state.begin, b.c0 + state.end, Acc<T>(0));
    }
    if (b.h0 != nullptr) {
      const Range share = position_.share_of(p_.output_size());
      std::fill(b.h0 + share.begin, b.h0 + share.end, T{});
    }
    if (plan_.algorithm == Algorithm::dot || p_.prepacked) return;
    const DirectionWeights<T>& w = a_.weights[d];
    const Range share = position_.share_of(gate_panels_.count());
    for (int64_t panel = share.begin; panel < share.end; ++panel) {
      if (!plan_.pack_late) {
        gate_panels_.pack(w.w_ih, p_.input_size, panel, b.w_x + panel * input_panel());
        gate_panels_.pack(w.w_hh, p_.output_size(), panel, b.w_h + panel * hidden_panel());
      }
      gate_panels_.pack_bias(w, panel, b.bias + panel * k_.width());
    }
    const Range projection = position_.share_of(gate_panels_.projection_count());
    for (int64_t panel = projection.begin; panel < projection.end; ++panel) {
      gate_panels_.pack_projection(w.w_hr, panel, b.w_r + panel * proj_panel());
    }
  }

  void walk(int d) {
    const TimeOrder order(steps_, a_.weights[d].reverse);
    for (int64_t s0 = 0; s0 < steps_.steps(); s0 += plan_.chunk_steps) {
      const int64_t s1 = std::min(steps_.steps(), s0 + plan_.chunk_steps);
      if (batched_input()) project_input(d, order, s0, s1);
      int64_t first_row = 0;  // of the step among the chunk's
      for (int64_t s = s0; s < s1; ++s) {
        step(d, order, s, first_row);
        first_row += rows_.count(order.size(s));
        if (p_.proj_size > 0) {
          row_barrier_.wait();
          project_output(d, order, s);
        }
        if (s + 1 < steps_.steps()) row_barrier_.wait();
      }
    }
  }

  // What the input contributes to a panel's gates in the rows of a chunk: those of one panel lie
  // together, for a [rows, 4 H] block would touch a page a row, and with H a power of two one set
  // of the first cache.
  Acc<T>* projected(int64_t panel) const {
    return scratch_.gates_x + (panel - panels_.begin) * scratch_.chunk_rows * k_.width();
  }

  // gates_x = x W_ih^T + b for this member's rows and panels of walk steps [s0, s1), the rows of
  // each step after those of the one before.
  void project_input(int d, const TimeOrder& order, int64_t s0, int64_t s1) {
    const ForwardDirection<T>& b = layout_.direction(d);
    int64_t rows = 0;
    for (int64_t s = s0; s < s1; ++s) {
      rows += list_input(order, s, scratch_.x_rows + rows);
    }
    PanelGemm<T, Acc<T>> g{};
    g.rows = rows;
    g.k = p_.input_size;
    g.a.list = scratch_.x_rows;
    g.a = k_.operands(g.a, rows, g.k, scratch_.x_operands);
    g.cols = int(k_.width());
    for_each_by_turns(panels_, false, [&](int64_t panel, int64_t next) {
      g.panel = b.w_x + panel * input_panel();
      g.ahead = next < 0 ? nullptr : b.w_x + next * input_panel();
      g.init = b.bias + panel * k_.width();
      g.c = {projected(panel), k_.width()};
      k_.gemm(g);
    });
  }

  // Where this member's rows of the input lie; how many they are.
  int64_t list_input(const TimeOrder& order, int64_t s, const T** list) {
    const int64_t rows = rows_.count(order.size(s)), t = order.time(s);
    for (int64_t j = 0; j < rows; ++j) list[j] = a_.x.row(steps_, t, rows_.row(j));
    return rows;
  }

  // One step: gates, c and h of this member's rows and units.
  void step(int d, const TimeOrder& order, int64_t s, int64_t first_row) {
    GateDot<T> dot{};
    GateStep<T>& g = dot.step;
    g.rows = rows_.count(order.size(s));
    g.hidden = p_.hidden_size;
    if (!batched_input()) set_input(order, s, &g);
    set_state(d, order, s, &g);
    set_results(d, order, s, &g);
    if (plan_.algorithm == Algorithm::panels) {
      if (g.x_size > 0) g.x = k_.operands(g.x, g.rows, g.x_size, scratch_.x_operands);
      if (g.h_size > 0) g.h_prev = k_.operands(g.h_prev, g.rows, g.h_size, scratch_.h_operands);
    }
    for_each_by_turns(panels_, s % 2 != 0, [&](int64_t panel, int64_t next) {
      g.unit = panel * k_.lanes;
      g.units = gate_panels_.units(panel);
      clearing_.advance();
      if (plan_.algorithm == Algorithm::panels) {
        set_panel(d, panel, next, first_row, &g);
        return k_.gate_step(g);
      }
      const DirectionWeights<T>& w = a_.weights[d];
      g.w_x = w.w_ih;
      g.w_h = w.w_hh;
      dot.b_ih = w.b_ih;
      dot.b_hh = w.b_hh;
      k_.gate_dot(dot);
    });
  }

  // Where the input of walk step s lies.
  void set_input(const TimeOrder& order, int64_t s, GateStep<T>* g) {
    g->x_size = p_.input_size;
    if (scratch_.x_rows != nullptr) {
      list_input(order, s, scratch_.x_rows);
      g->x.list = scratch_.x_rows;
    } else {
      g->x = {a_.x.row(steps_, order.time(s), rows_.row(0)), rows_.step() * a_.x.row_stride};
    }
  }

  // Where c and h of walk step s go, and what is saved.
  void set_results(int d, const TimeOrder& order, int64_t s, GateStep<T>* g) {
    const ForwardDirection<T>& b = layout_.direction(d);
    const int64_t hidden = p_.hidden_size, out = p_.output_size();
    const int64_t here = order.offset(s), saved = d * saved_.rows();
    g->c_next = rows_.of(b.c0, hidden);
    if (keeps(s)) {
      g->c_next =
          saved_rows_.at(a_.c + saved * hidden, hidden, here, g->rows, scratch_.c_next_rows);
    }
    if (a_.gates != nullptr) {
      g->gates = saved_rows_.at(a_.gates + saved * 4 * hidden, 4 * hidden, here, g->rows,
                                scratch_.gates_rows);
    }
    g->h_next = p_.proj_size > 0 ? rows_.of(b.m, hidden)
                                 : step_rows_.at(a_.y + d * out, p_.directions * out, here, g->rows,
                                                 scratch_.y_rows);
  }

  // The packed weights of a panel, and those to fetch ahead, of `next`; where the input is batched
  // its projection.
  void set_panel(int d, int64_t panel, int64_t next, int64_t first_row, GateStep<T>* g) {
    const ForwardDirection<T>& b = layout_.direction(d);
    if (plan_.pack_late) {
      const DirectionWeights<T>& w = a_.weights[d];
      gate_panels_.pack(w.w_ih, p_.input_size, panel, scratch_.w_x);
      if (g->h_size > 0) gate_panels_.pack(w.w_hh, p_.output_size(), panel, scratch_.w_h);
      g->w_x = scratch_.w_x;
      g->w_h = scratch_.w_h;
    } else {
      g->w_x = b.w_x + panel * input_panel();
      g->w_h = b.w_h + panel * hidden_panel();
      g->w_x_ahead = next < 0 ? nullptr : b.w_x + next * input_panel();
      g->w_h_ahead = next < 0 ? nullptr : b.w_h + next * hidden_panel();
    }
    g->init = b.bias + panel * k_.width();
    if (batched_input()) {
      g->init_stride = k_.width();
      g->init = projected(panel) + first_row * k_.width();
    }
  }

  // h and c before walk step s: of the step before, and the initial state of rows that begin here.
  void set_state(int d, const TimeOrder& order, int64_t s, GateStep<T>* g) {
    const ForwardDirection<T>& b = layout_.direction(d);
    const int64_t hidden = p_.hidden_size, out = p_.output_size(), y_stride = p_.directions * out;
    const int64_t continued = rows_.count(order.continued(s));
    const T* h0 = a_.h0 == nullptr ? nullptr : a_.h0 + d * p_.batch * out;
    const Rows<const T> h_first = h0 == nullptr ? Rows<const T>{b.h0, 0} : rows_.of(h0, out);
    const Rows<const Acc<T>> c_first = rows_.of<const Acc<T>>(b.c0, hidden);
    g->h_size = out;
    g->c_prev = c_first;
    if (continued == 0) {
      g->h_prev = h_first;
      // At the first step, whoever shares the rows: elsewhere other teams would multiply these
      // zeros together with rows that go on, and zero times infinity is not zero.
      if (h0 == nullptr && s == 0) g->h_size = 0;
      return;
    }
    const int64_t before = order.offset(s - 1);
    g->h_prev =
        step_rows_.at<const T>(a_.y + d * out, y_stride, before, continued, scratch_.h_rows);
    if (keeps(s - 1)) {
      g->c_prev = saved_rows_.at<const Acc<T>>(a_.c + d * saved_.rows() * hidden, hidden, before,
                                               continued, scratch_.c_rows);
    }
    if (continued == g->rows) return;
    for (int64_t j = 0; j < g->rows; ++j) {
      scratch_.h_rows[j] = (j < continued ? g->h_prev : h_first).at(j);
      scratch_.c_rows[j] = (j < continued ? g->c_prev : c_first).at(j);
    }
    g->h_prev.list = scratch_.h_rows;
    g->c_prev.list = scratch_.c_rows;
  }

  // y = m W_hr^T for this member's rows and its share of the projection's panels.
  void project_output(int d, const TimeOrder& order, int64_t s) {
    const ForwardDirection<T>& b = layout_.direction(d);
    const int64_t out = p_.proj_size, y_stride = p_.directions * out;
    const Range panels =
        part_of(ceil_div(out, k_.width()), position_.unit_group, plan_.unit_groups);
    PanelGemm<T, T> g{};
    g.rows = rows_.count(order.size(s));
    g.k = p_.hidden_size;
    g.a = k_.operands(rows_.of<const T>(b.m, p_.hidden_size), g.rows, g.k, scratch_.h_operands);
    g.c = step_rows_.at(a_.y + d * out, y_stride, order.offset(s), g.rows, scratch_.y_rows);
    for_each_by_turns(panels, s % 2 != 0, [&](int64_t panel, int64_t next) {
      g.panel = b.w_r + panel * proj_panel();
      g.ahead = next < 0 ? nullptr : b.w_r + next * proj_panel();
      g.col = panel * k_.width();
      g.cols = int(std::min(k_.width(), out - g.col));
      k_.gemm_out(g);
    });
  }

  // h_n and c_n of this member's share of the rows, from the last step of each.
  void finish(int d) {
    const int64_t hidden = p_.hidden_size, out = p_.output_size();
    const Range share = position_.share_of(p_.batch);
    const TimeOrder order(steps_, a_.weights[d].reverse);
    order.for_ends([&](int64_t t, Range ending) {
      const bool kept = keeps(order.time(t));
      const int64_t end = std::min(ending.end, share.end);
      for (int64_t row = std::max(ending.begin, share.begin); row < end; ++row) {
        const int64_t last = steps_.offset(t) + row;
        const T* h = a_.y + steps_.place(last) * p_.directions * out + d * out;
        std::copy(h, h + out, a_.h_n + (d * p_.batch + row) * out);
        const Acc<T>* c = kept ? a_.c + (d * saved_.rows() + saved_.of(last)) * hidden
                               : layout_.direction(d).c0 + row * hidden;
        narrow_all<T>(c, hidden, a_.c_n + (d * p_.batch + row) * hidden);
      }
    });
  }

  const ForwardArgs<T>& a_;
  const LstmProblem& p_;
  const CpuPlan& plan_;
  const Steps& steps_;
  const Kernels<T>& k_;
  const ForwardLayout<T>& layout_;
  const Position position_;
  Barrier& group_barrier_;
  Barrier& row_barrier_;
  const MemberRows rows_;
  const StepRows step_rows_;
  const Places saved_;
  const StepRows saved_rows_;
  const GatePanels<T> gate_panels_;
  const Range panels_;    // of hidden units
  Clearing<T> clearing_;  // of y
  const ForwardScratch<T> scratch_;
};

}  // namespace

template <class T>
size_t forward_workspace(const ForwardArgs<T>& args, const CpuPlan& plan) {
  return ForwardLayout<T>(args, plan, nullptr).bytes();
}

template <class T>
bool forward(const ForwardArgs<T>& args, const CpuPlan& plan, void* workspace) {
  const ForwardLayout<T> layout(args, plan, workspace);
  TeamBarriers barriers(plan);
  return run_team(plan.threads(), [&](int rank) {
    ForwardMember<T>(args, plan, layout, barriers, rank).run();
    if (args.kernels->release != nullptr) args.kernels->release();
  });
}

#define FUSED_LSTM_INSTANTIATE(T)                                              \
  template size_t forward_workspace<T>(const ForwardArgs<T>&, const CpuPlan&); \
  template bool forward<T>(const ForwardArgs<T>&, const CpuPlan&, void*)
FUSED_LSTM_INSTANTIATE(float);
FUSED_LSTM_INSTANTIATE(double);
#if defined(FUSED_LSTM_X86)
FUSED_LSTM_INSTANTIATE(bfloat16);
#endif

}  // namespace fused_lstm::cpu
