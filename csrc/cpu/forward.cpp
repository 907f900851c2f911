// Forward pass of one layer: packs the weights, then walks the steps of each direction.
#include "layer.h"
#include "member.h"

namespace fused_lstm::cpu {
namespace {

// The workspace of one direction.
template <class T>
struct ForwardBuffers {
  T* w_x;        // panels of W_ih
  T* w_h;        // panels of W_hh
  T* w_r;        // panels of W_hr
  Acc<T>* bias;  // [panels, 4 * lanes]
  Acc<T>* c0;    // [B, H] initial state, and the running one where c is not saved
  T* m;          // [B, H] o * tanh(c) before the projection
};

template <class T>
struct ForwardLayout {
  ForwardBuffers<T> direction[2];
  std::vector<Acc<T>*> gates_x;  // per member: [chunk rows, its panels, 4 * lanes]
  size_t bytes;

  ForwardLayout(const ForwardArgs<T>& args, const CpuPlan& plan, void* base) {
    const LstmProblem& p = args.problem;
    const int lanes = kernels<T>().lanes, width = 4 * lanes, pair = kPair<T>;
    const int64_t panels = ceil_div(p.hidden_size, lanes);
    Carver carver(base);
    for (int d = 0; d < p.directions; ++d) {
      ForwardBuffers<T>& b = direction[d];
      b = {};
      b.c0 = carver.take<Acc<T>>(p.batch * p.hidden_size);
      if (plan.algorithm == CpuAlgorithm::dot) continue;
      b.w_x = carver.take<T>(panels * width * ceil_div(p.input_size, pair) * pair);
      b.w_h = carver.take<T>(panels * width * ceil_div(p.output_size(), pair) * pair);
      b.bias = carver.take<Acc<T>>(panels * width);
      if (p.proj_size == 0) continue;
      b.w_r = carver.take<T>(ceil_div(p.proj_size, width) * width * ceil_div(p.hidden_size, pair) *
                             pair);
      b.m = carver.take<T>(p.batch * p.hidden_size);
    }
    if (plan.algorithm == CpuAlgorithm::panels && !plan.fold_input) {
      const int64_t rows = plan.chunk_steps * ceil_div(p.batch, plan.row_groups);
      for (int i = 0; i < plan.threads(); ++i) {
        gates_x.push_back(carver.take<Acc<T>>(rows * ceil_div(panels, plan.unit_groups) * width));
      }
    }
    bytes = carver.used();
  }
};

template <class T>
class ForwardMember {
 public:
  ForwardMember(const ForwardArgs<T>& args, const CpuPlan& plan, const ForwardLayout<T>& layout,
                TeamBarriers& barriers, int rank)
      : a_(args),
        p_(args.problem),
        plan_(plan),
        steps_(*args.steps),
        k_(kernels<T>()),
        layout_(layout),
        place_(plan, rank),
        group_barrier_(barriers.group(place_)),
        row_barrier_(barriers.rows(place_)),
        rows_(steps_, place_.row_group, plan.row_groups),
        panels_(part_of(ceil_div(p_.hidden_size, k_.lanes), place_.unit_group, plan.unit_groups)),
        gates_x_(layout.gates_x.empty() ? nullptr : layout.gates_x[rank]) {}

  void run() {
    for (int d = place_.direction_group; d < p_.directions; d += plan_.direction_groups) {
      prepare(d);
      group_barrier_.wait();
      walk(d);
      group_barrier_.wait();
      finish(d);
    }
  }

 private:
  int64_t width() const { return 4 * k_.lanes; }
  int64_t entries(int64_t k) const { return ceil_div(k, kPair<T>) * kPair<T>; }
  int64_t input_panel() const { return width() * entries(p_.input_size); }
  int64_t hidden_panel() const { return width() * entries(p_.output_size()); }
  int64_t proj_panel() const { return width() * entries(p_.hidden_size); }
  int units(int64_t panel) const {
    return int(std::min<int64_t>(k_.lanes, p_.hidden_size - panel * k_.lanes));
  }

  // This member's share of the panels, the bias and the initial state.
  void prepare(int d) {
    const ForwardBuffers<T>& b = layout_.direction[d];
    const Range state = part_of(p_.batch * p_.hidden_size, place_.group_rank, place_.group_size);
    if (a_.c0 != nullptr) {
      widen_all<T>(a_.c0 + d * p_.batch * p_.hidden_size + state.begin, state.size(),
                   b.c0 + state.begin);
    } else {
      std::fill(b.c0 + state.begin, b.c0 + state.end, Acc<T>(0));
    }
    if (plan_.algorithm == CpuAlgorithm::dot) return;
    const DirectionWeights<T>& w = a_.weights[d];
    const Range mine =
        part_of(ceil_div(p_.hidden_size, k_.lanes), place_.group_rank, place_.group_size);
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
      pack_gates(w.w_ih, p_.input_size, panel, b.w_x + panel * input_panel());
      pack_gates(w.w_hh, p_.output_size(), panel, b.w_h + panel * hidden_panel());
      pack_bias(w, panel, b.bias + panel * width());
    }
    if (p_.proj_size == 0) return;
    const Range proj =
        part_of(ceil_div(p_.proj_size, width()), place_.group_rank, place_.group_size);
    for (int64_t panel = proj.begin; panel < proj.end; ++panel) {
      PackTransposed<T> pack{w.w_hr,
                             p_.hidden_size,
                             p_.hidden_size,
                             panel * width(),
                             k_.lanes,
                             {},
                             b.w_r + panel * proj_panel()};
      for (int g = 0; g < 4; ++g) {
        const int64_t left = p_.proj_size - panel * width() - g * k_.lanes;
        pack.live[g] = int(std::clamp<int64_t>(left, 0, k_.lanes));
      }
      k_.pack_transposed(pack);
    }
  }

  void pack_gates(const T* w, int64_t k, int64_t panel, T* out) {
    const int n = units(panel);
    k_.pack_transposed({w, k, k, panel * k_.lanes, p_.hidden_size, {n, n, n, n}, out});
  }

  void pack_bias(const DirectionWeights<T>& w, int64_t panel, Acc<T>* out) {
    for (int g = 0; g < 4; ++g) {
      for (int l = 0; l < k_.lanes; ++l) {
        const int64_t row = g * p_.hidden_size + panel * k_.lanes + l;
        const bool live = w.b_ih != nullptr && l < units(panel);
        out[g * k_.lanes + l] = live ? to_acc(w.b_ih[row]) + to_acc(w.b_hh[row]) : Acc<T>(0);
      }
    }
  }

  void walk(int d) {
    const Walk order(steps_, a_.weights[d].reverse);
    for (int64_t s0 = 0; s0 < steps_.steps(); s0 += plan_.chunk_steps) {
      const int64_t s1 = std::min(steps_.steps(), s0 + plan_.chunk_steps);
      if (gates_x_ != nullptr) project_input(d, order, s0, s1);
      for (int64_t s = s0; s < s1; ++s) {
        gates(d, order, s, s - s0);
        if (p_.proj_size > 0) {
          row_barrier_.wait();
          project_output(d, order, s);
        }
        row_barrier_.wait();
      }
    }
  }

  // gates_x = x W_ih^T + b for this member's rows and panels of walk steps [s0, s1). Row j of step
  // s is row (s - s0) * most + j.
  void project_input(int d, const Walk& order, int64_t s0, int64_t s1) {
    const ForwardBuffers<T>& b = layout_.direction[d];
    const int64_t most = rows_.most(), stride = panels_.size() * width();
    PanelGemm<T, Acc<T>> g{};
    g.k = p_.input_size;
    g.init_stride = 0;
    g.cols = int(width());
    for (int64_t panel = panels_.begin; panel < panels_.end; ++panel) {
      g.panel = b.w_x + panel * input_panel();
      g.init = b.bias + panel * width();
      Acc<T>* out = gates_x_ + (panel - panels_.begin) * width();
      if (steps_.packed() || most >= s1 - s0) {  // rows of one step at a time
        for (int64_t s = s0; s < s1; ++s) {
          g.rows = rows_.count(order.size(s));
          g.a = rows_.at(a_.x.at(steps_, order.time(s)), 0, a_.x.row_stride);
          g.a_stride = rows_.step() * a_.x.row_stride;
          g.c = out + (s - s0) * most * stride;
          g.c_stride = stride;
          k_.gemm(g);
        }
      } else {  // steps of one row at a time
        const int64_t sign = a_.weights[d].reverse ? -1 : 1;
        for (int64_t j = 0; j < most; ++j) {
          g.rows = s1 - s0;
          g.a = rows_.at(a_.x.at(steps_, order.time(s0)), j, a_.x.row_stride);
          g.a_stride = sign * a_.x.step_stride;
          g.c = out + j * stride;
          g.c_stride = most * stride;
          k_.gemm(g);
        }
      }
    }
  }

  // One step: gates, c and h of this member's rows and units, first for the rows that go on from
  // the step before, then for those that start here.
  void gates(int d, const Walk& order, int64_t s, int64_t local) {
    const int64_t going = rows_.count(order.continued(s)), live = rows_.count(order.size(s));
    if (going > 0) gate_rows(d, order, s, local, {0, going}, true);
    if (live > going) gate_rows(d, order, s, local, {going, live}, false);
  }

  void gate_rows(int d, const Walk& order, int64_t s, int64_t local, Range rows, bool going) {
    const ForwardBuffers<T>& b = layout_.direction[d];
    const DirectionWeights<T>& w = a_.weights[d];
    const int64_t hidden = p_.hidden_size, out = p_.output_size(), y_stride = p_.directions * out;
    const int64_t here = order.offset(s), before = going ? order.offset(s - 1) : 0;
    const int64_t saved = d * steps_.rows(), step = rows_.step();
    GateStep<T> g{};
    g.rows = rows.size();
    g.hidden = hidden;
    g.x = rows_.at(a_.x.at(steps_, order.time(s)), rows.begin, a_.x.row_stride);
    g.x_stride = step * a_.x.row_stride;
    g.x_size = gates_x_ == nullptr ? p_.input_size : 0;
    if (going) {
      g.h_prev = rows_.at(a_.y + before * y_stride + d * out, rows.begin, y_stride);
      g.h_stride = step * y_stride;
    } else if (a_.h0 != nullptr) {
      g.h_prev = rows_.at(a_.h0 + d * p_.batch * out, rows.begin, out);
      g.h_stride = step * out;
    }
    g.h_size = g.h_prev == nullptr ? 0 : out;
    g.c_prev_stride = g.c_next_stride = step * hidden;
    g.gates_stride = step * 4 * hidden;
    T* h = p_.proj_size > 0 ? b.m : a_.y + here * y_stride + d * out;
    const int64_t h_stride = p_.proj_size > 0 ? hidden : y_stride;
    g.h_next_stride = step * h_stride;

    for (int64_t panel = panels_.begin; panel < panels_.end; ++panel) {
      const int64_t unit = panel * k_.lanes;
      g.units = units(panel);
      Acc<T>* c_state = rows_.at(b.c0 + unit, rows.begin, hidden);
      if (a_.c != nullptr) {
        const Acc<T>* c_before = a_.c + (saved + before) * hidden + unit;
        g.c_prev = going ? rows_.at(c_before, rows.begin, hidden) : c_state;
        g.c_next = rows_.at(a_.c + (saved + here) * hidden + unit, rows.begin, hidden);
        g.gates = rows_.at(a_.gates + (saved + here) * 4 * hidden + unit, rows.begin, 4 * hidden);
      } else {
        g.c_prev = g.c_next = c_state;
      }
      g.h_next = rows_.at(h + unit, rows.begin, h_stride);
      if (plan_.algorithm == CpuAlgorithm::dot) {
        g.w_x = w.w_ih + unit * p_.input_size;
        g.w_h = w.w_hh + unit * out;
        k_.gate_dot({g, p_.input_size, out, w.b_ih == nullptr ? nullptr : w.b_ih + unit,
                     w.b_hh == nullptr ? nullptr : w.b_hh + unit});
        continue;
      }
      g.w_x = b.w_x + panel * input_panel();
      g.w_h = b.w_h + panel * hidden_panel();
      g.init = b.bias + panel * width();
      if (gates_x_ != nullptr) {
        g.init_stride = panels_.size() * width();
        g.init = gates_x_ + (local * rows_.most() + rows.begin) * g.init_stride +
                 (panel - panels_.begin) * width();
      }
      k_.gate_step(g);
    }
  }

  // y = m W_hr^T for this member's rows and its share of the projection's panels.
  void project_output(int d, const Walk& order, int64_t s) {
    const ForwardBuffers<T>& b = layout_.direction[d];
    const int64_t out = p_.proj_size, y_stride = p_.directions * out;
    const Range mine = part_of(ceil_div(out, width()), place_.unit_group, plan_.unit_groups);
    PanelGemm<T, T> g{};
    g.rows = rows_.count(order.size(s));
    g.k = p_.hidden_size;
    g.a = rows_.at(b.m, 0, p_.hidden_size);
    g.a_stride = rows_.step() * p_.hidden_size;
    g.c_stride = rows_.step() * y_stride;
    for (int64_t panel = mine.begin; panel < mine.end; ++panel) {
      g.panel = b.w_r + panel * proj_panel();
      g.c = rows_.at(a_.y + order.offset(s) * y_stride + d * out + panel * width(), 0, y_stride);
      g.cols = int(std::min(width(), out - panel * width()));
      k_.gemm_out(g);
    }
  }

  // h_n and c_n of this member's share of the rows, from the last step of each.
  void finish(int d) {
    const int64_t hidden = p_.hidden_size, out = p_.output_size();
    const Range mine = part_of(p_.batch, place_.group_rank, place_.group_size);
    Walk(steps_, a_.weights[d].reverse).for_ends([&](int64_t t, Range ending) {
      const int64_t end = std::min(ending.end, mine.end);
      for (int64_t b = std::max(ending.begin, mine.begin); b < end; ++b) {
        const int64_t row = steps_.offset(t) + b;
        const T* h = a_.y + row * p_.directions * out + d * out;
        std::copy(h, h + out, a_.h_n + (d * p_.batch + b) * out);
        const Acc<T>* c = a_.c != nullptr ? a_.c + (d * steps_.rows() + row) * hidden
                                          : layout_.direction[d].c0 + b * hidden;
        narrow_all<T>(c, hidden, a_.c_n + (d * p_.batch + b) * hidden);
      }
    });
  }

  const ForwardArgs<T>& a_;
  const LstmProblem& p_;
  const CpuPlan& plan_;
  const Steps& steps_;
  const Kernels<T>& k_;
  const ForwardLayout<T>& layout_;
  const Place place_;
  Barrier& group_barrier_;
  Barrier& row_barrier_;
  const MemberRows rows_;
  const Range panels_;  // of hidden units
  Acc<T>* const gates_x_;
};

}  // namespace

template <class T>
size_t forward_workspace(const ForwardArgs<T>& args, const CpuPlan& plan) {
  return ForwardLayout<T>(args, plan, nullptr).bytes;
}

template <class T>
bool forward(const ForwardArgs<T>& args, const CpuPlan& plan, void* workspace) {
  const ForwardLayout<T> layout(args, plan, workspace);
  TeamBarriers barriers(plan);
  return run_team(plan.threads(),
                  [&](int rank) { ForwardMember<T>(args, plan, layout, barriers, rank).run(); });
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
