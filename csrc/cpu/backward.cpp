// Backward pass of one layer: walks the steps of each direction from the last to the first, in
// chunks; the gradients of the weights and of the input are large products after each chunk.
#include "backward_layout.h"
#include "layer.h"
#include "member.h"

namespace fused_lstm::cpu {
namespace {

template <class T>
class BackwardMember {
 public:
  BackwardMember(const BackwardArgs<T>& args, const CpuPlan& plan, const BackwardLayout<T>& layout,
                 TeamBarriers& barriers, int rank)
      : a_(args),
        p_(args.problem),
        plan_(plan),
        steps_(*args.steps),
        k_(kernels<T>()),
        layout_(layout),
        place_(plan, rank),
        everybody_(barriers.everybody()),
        group_barrier_(barriers.group(place_)),
        row_barrier_(barriers.rows(place_)),
        rows_(steps_, place_.row_group, plan.row_groups),
        out_units_(part_of(p_.output_size(), place_.unit_group, plan.unit_groups, width())),
        hidden_units_(part_of(p_.hidden_size, place_.unit_group, plan.unit_groups, width())),
        input_rows_(layout.chunk_rows),
        hidden_rows_(layout.chunk_rows) {}

  void run() {
    for (int d = place_.direction_group; d < p_.directions; d += plan_.direction_groups) {
      prepare(d);
      group_barrier_.wait();
      const Walk order(steps_, a_.weights[d].reverse);
      for (int64_t s1 = steps_.steps(); s1 > 0;) {
        const int64_t s0 = std::max<int64_t>(0, s1 - plan_.chunk_steps);
        walk(d, order, s0, s1);
        group_barrier_.wait();
        products(d, order, s0, s1);
        group_barrier_.wait();
        s1 = s0;
      }
      finish(d);
    }
    add_directions();
  }

 private:
  int64_t width() const { return 4 * k_.lanes; }

  // Panels of a [k, n] matrix as it lies, this member's share of them.
  void pack_matrix(const T* matrix, int64_t k, int64_t n, T* panels) {
    const Range mine = part_of(ceil_div(n, width()), place_.group_rank, place_.group_size);
    if (mine.size() == 0) return;
    std::vector<const T*> rows(k);
    for (int64_t i = 0; i < k; ++i) rows[i] = matrix + i * n;
    pack_panels(rows.data(), k, n, mine, panels);
  }

  void pack_panels(const T* const* rows, int64_t k, int64_t n, Range panels, T* out) {
    for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
      const int64_t col = panel * width();
      k_.pack_rows(
          {rows, k, col, int(std::min(width(), n - col)), out + panel * width() * padded<T>(k)});
    }
  }

  // Calls f(panel, first column, columns) for the panels that cover `columns`, which begin at one.
  template <class F>
  void for_panels(Range columns, const F& f) {
    for (int64_t col = columns.begin; col < columns.end; col += width()) {
      f(col / width(), col, int(std::min(width(), columns.end - col)));
    }
  }

  void prepare(int d) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    const DirectionWeights<T>& w = a_.weights[d];
    const int64_t hidden = p_.hidden_size, out = p_.output_size();
    pack_matrix(w.w_hh, 4 * hidden, out, b.w_h);
    if (a_.dx != nullptr) pack_matrix(w.w_ih, 4 * hidden, p_.input_size, b.w_x);
    if (p_.proj_size > 0) pack_matrix(w.w_hr, out, hidden, b.w_r);
    start_state(a_.grad_h_n, d, p_.batch * out, b.dh);
    start_state(a_.grad_c_n, d, p_.batch * hidden, b.dc);
    if (a_.c0 != nullptr) {
      const Range mine = part_of(p_.batch * hidden, place_.group_rank, place_.group_size);
      widen_all<T>(a_.c0 + d * p_.batch * hidden + mine.begin, mine.size(), b.c0 + mine.begin);
    }
  }

  void start_state(const T* grad, int d, int64_t size, Acc<T>* state) {
    const Range mine = part_of(size, place_.group_rank, place_.group_size);
    if (grad != nullptr) {
      widen_all<T>(grad + d * size + mine.begin, mine.size(), state + mine.begin);
    } else {
      std::fill(state + mine.begin, state + mine.end, Acc<T>(0));
    }
  }

  // Gradients of the pre-activations of walk steps [s0, s1), and dh for what comes before s0.
  void walk(int d, const Walk& order, int64_t s0, int64_t s1) {
    const int64_t first_row = order.rows(s0, s1).begin;
    for (int64_t s = s1 - 1; s >= s0; --s) {
      if (s < s1 - 1) pull_back(d, order, s + 1, first_row);
      if (p_.proj_size > 0) {
        project_back(d, order, s, first_row);
        row_barrier_.wait();
        unproject(d, order, s, first_row);
      }
      gradients(d, order, s, first_row);
      row_barrier_.wait();
    }
    if (s0 > 0 || a_.dh0 != nullptr) pull_back(d, order, s0, first_row);
  }

  // dh = dgates W_hh for this member's rows of walk step s and its columns.
  void pull_back(int d, const Walk& order, int64_t s, int64_t first_row) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    step_product(order, s, first_row, b.dgates, 4 * p_.hidden_size, b.w_h, out_units_,
                 p_.output_size(), b.dh);
  }

  // dm = dp W_hr: the gradient of o * tanh(c).
  void unproject(int d, const Walk& order, int64_t s, int64_t first_row) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    step_product(order, s, first_row, b.dp, p_.output_size(), b.w_r, hidden_units_, p_.hidden_size,
                 b.dm);
  }

  // c[B, n] = a[chunk, k] * panels, for this member's rows of walk step s and these columns.
  void step_product(const Walk& order, int64_t s, int64_t first_row, const T* a, int64_t k,
                    const T* panels, Range columns, int64_t n, Acc<T>* c) {
    PanelGemm<T, Acc<T>> g{};
    g.rows = rows_.count(order.size(s));
    g.k = k;
    g.a = rows_.at(a + (order.offset(s) - first_row) * k, 0, k);
    g.a_stride = rows_.step() * k;
    g.c_stride = rows_.step() * n;
    for_panels(columns, [&](int64_t panel, int64_t col, int cols) {
      g.panel = panels + panel * width() * padded<T>(k);
      g.c = rows_.at(c + col, 0, n);
      g.cols = cols;
      k_.gemm(g);
    });
  }

  // dp = dh + dy: the gradient of the projected output, this member's rows and columns.
  void project_back(int d, const Walk& order, int64_t s, int64_t first_row) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    const int64_t out = p_.output_size(), y_stride = p_.directions * out;
    for (int64_t j = 0; j < rows_.count(order.size(s)); ++j) {
      const Acc<T>* dh = rows_.at(b.dh, j, out);
      T* dp = rows_.at(b.dp + (order.offset(s) - first_row) * out, j, out);
      const T* dy = a_.grad_y == nullptr
                        ? nullptr
                        : rows_.at(a_.grad_y + order.offset(s) * y_stride + d * out, j, y_stride);
      for (int64_t i = out_units_.begin; i < out_units_.end; ++i) {
        dp[i] = from_acc<T>(dy == nullptr ? dh[i] : dh[i] + to_acc(dy[i]));
      }
    }
  }

  // dgates and dc of walk step s, first for the rows that came from the step before.
  void gradients(int d, const Walk& order, int64_t s, int64_t first_row) {
    const int64_t going = rows_.count(order.continued(s)), live = rows_.count(order.size(s));
    if (going > 0) gradient_rows(d, order, s, first_row, {0, going}, true);
    if (live > going) gradient_rows(d, order, s, first_row, {going, live}, false);
  }

  void gradient_rows(int d, const Walk& order, int64_t s, int64_t first_row, Range rows,
                     bool going) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    const int64_t hidden = p_.hidden_size, gates = 4 * hidden, out = p_.output_size();
    const int64_t here = order.offset(s), y_stride = p_.directions * out;
    const int64_t saved = d * steps_.rows(), step = rows_.step(), j = rows.begin;
    const bool projected = p_.proj_size > 0;
    GateGradient<T> g{};
    g.rows = rows.size();
    g.hidden = hidden;
    g.gates_stride = g.dgates_stride = step * gates;
    g.c_stride = g.c_prev_stride = g.dc_stride = g.dh_stride = step * hidden;
    g.dy_stride = step * y_stride;
    for (int64_t unit = hidden_units_.begin; unit < hidden_units_.end; unit += k_.lanes) {
      g.units = int(std::min<int64_t>(k_.lanes, hidden_units_.end - unit));
      g.gates = rows_.at(a_.gates + (saved + here) * gates + unit, j, gates);
      g.c = rows_.at(a_.c + (saved + here) * hidden + unit, j, hidden);
      if (going) {
        g.c_prev = rows_.at(a_.c + (saved + order.offset(s - 1)) * hidden + unit, j, hidden);
      } else if (a_.c0 != nullptr) {
        g.c_prev = rows_.at(b.c0 + unit, j, hidden);
      }
      if (!projected && a_.grad_y != nullptr) {
        g.dy = rows_.at(a_.grad_y + here * y_stride + d * out + unit, j, y_stride);
      }
      g.dh = rows_.at((projected ? b.dm : b.dh) + unit, j, hidden);
      g.dc = rows_.at(b.dc + unit, j, hidden);
      g.dgates = rows_.at(b.dgates + (here - first_row) * gates + unit, j, gates);
      k_.gate_gradient(g);
    }
  }

  // Gradients of weights and input from the gates' gradients of walk steps [s0, s1).
  void products(int d, const Walk& order, int64_t s0, int64_t s1) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    const DirectionGradients<T>& grads = a_.grads[d];
    const Range rows = order.rows(s0, s1);
    const bool first = s1 == steps_.steps();
    if (a_.dx != nullptr) input_gradient(d, rows);
    const int64_t hidden = p_.hidden_size, out = p_.output_size();
    const bool weights = grads.w_ih != nullptr || grads.w_hh != nullptr;
    if (weights || grads.b_ih != nullptr || grads.b_hh != nullptr) {
      const Range mine = part_of(4 * hidden, place_.group_rank, place_.group_size, k_.lanes);
      const T* dgates_t = transposed(b.dgates, 4 * hidden, rows.size(), mine);
      if (grads.w_ih != nullptr) {
        pack_inputs(order, s0, s1);
        pack_share(input_rows_, rows.size(), p_.input_size, b.x_panels);
      }
      if (grads.w_hh != nullptr) {
        pack_outputs(d, order, s0, s1);
        pack_share(hidden_rows_, rows.size(), out, b.h_panels);
      }
      group_barrier_.wait();
      accumulate(dgates_t, mine, rows.size(), b.x_panels, p_.input_size, first, b.dw_ih);
      accumulate(dgates_t, mine, rows.size(), b.h_panels, out, first, b.dw_hh);
      if (b.db != nullptr) {
        if (first) std::fill(b.db + mine.begin, b.db + mine.end, Acc<T>(0));
        k_.row_sums(dgates_t, layout_.transposed_stride, mine.size(), rows.size(),
                    b.db + mine.begin);
      }
    }
    if (grads.w_hr != nullptr) projection_gradient(d, rows, first);
  }

  void pack_share(const std::vector<const T*>& rows, int64_t k, int64_t n, T* panels) {
    pack_panels(rows.data(), k, n,
                part_of(ceil_div(n, width()), place_.group_rank, place_.group_size), panels);
  }

  // Columns `mine` of a [rows, columns] chunk as rows of this member's own buffer.
  const T* transposed(const T* chunk, int64_t columns, int64_t rows, Range mine) {
    T* out = layout_.transposed[place_.direction_group] + mine.begin * layout_.transposed_stride;
    if (mine.size() > 0) {
      k_.transpose(
          {chunk + mine.begin, columns, rows, mine.size(), out, layout_.transposed_stride});
    }
    return out;
  }

  // dw[mine, n] (+)= a_t[mine, rows] * panels
  void accumulate(const T* a_t, Range mine, int64_t rows, const T* panels, int64_t n, bool first,
                  Acc<T>* dw) {
    if (dw == nullptr || mine.size() == 0) return;
    PanelGemm<T, Acc<T>> g{};
    g.rows = mine.size();
    g.k = rows;
    g.a = a_t;
    g.a_stride = layout_.transposed_stride;
    g.c_stride = g.init_stride = n;
    for_panels({0, n}, [&](int64_t panel, int64_t col, int cols) {
      g.panel = panels + panel * width() * padded<T>(rows);
      g.c = dw + mine.begin * n + col;
      g.init = first ? nullptr : g.c;
      g.cols = cols;
      k_.gemm(g);
    });
  }

  // Where the input rows of walk steps [s0, s1) lie, in the order of the chunk.
  void pack_inputs(const Walk& order, int64_t s0, int64_t s1) {
    const int64_t first_row = order.rows(s0, s1).begin;
    for (int64_t s = s0; s < s1; ++s) {
      const T* x = a_.x.at(steps_, order.time(s));
      for (int64_t b = 0; b < order.size(s); ++b) {
        input_rows_[order.offset(s) - first_row + b] = x + b * a_.x.row_stride;
      }
    }
  }

  // Likewise the outputs h_{s-1} that went into these steps; null for a zero initial state.
  void pack_outputs(int d, const Walk& order, int64_t s0, int64_t s1) {
    const int64_t first_row = order.rows(s0, s1).begin, out = p_.output_size();
    const int64_t y_stride = p_.directions * out;
    for (int64_t s = s0; s < s1; ++s) {
      const T** rows = hidden_rows_.data() + order.offset(s) - first_row;
      const int64_t going = order.continued(s);
      for (int64_t b = 0; b < going; ++b) {
        rows[b] = a_.y + (order.offset(s - 1) + b) * y_stride + d * out;
      }
      for (int64_t b = going; b < order.size(s); ++b) {
        rows[b] = a_.h0 == nullptr ? nullptr : a_.h0 + (d * p_.batch + b) * out;
      }
    }
  }

  // dx = dgates W_ih for this member's share of the chunk's rows.
  void input_gradient(int d, Range rows) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    const int64_t gates = 4 * p_.hidden_size, input = p_.input_size;
    const Range mine = part_of(rows.size(), place_.group_rank, place_.group_size);
    if (mine.size() == 0) return;
    PanelGemm<T, T> g{};
    g.rows = mine.size();
    g.k = gates;
    g.a = b.dgates + mine.begin * gates;
    g.a_stride = gates;
    g.c_stride = input;
    for_panels({0, input}, [&](int64_t panel, int64_t col, int cols) {
      g.panel = b.w_x + panel * width() * padded<T>(gates);
      g.c = b.dx + (rows.begin + mine.begin) * input + col;
      g.cols = cols;
      k_.gemm_out(g);
    });
  }

  // dW_hr (+)= dp^T m with m = o * tanh(c).
  void projection_gradient(int d, Range rows, bool first) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    const int64_t hidden = p_.hidden_size, out = p_.output_size(), n = rows.size();
    const Range share = part_of(n, place_.group_rank, place_.group_size);
    for (int64_t i = share.begin; i < share.end; ++i) {
      const int64_t row = d * steps_.rows() + rows.begin + i;
      k_.hidden(a_.gates + row * 4 * hidden + 3 * hidden, a_.c + row * hidden, hidden,
                b.m + i * hidden);
    }
    group_barrier_.wait();
    for (int64_t i = 0; i < n; ++i) hidden_rows_[i] = b.m + i * hidden;
    pack_share(hidden_rows_, n, hidden, b.m_panels);
    const Range mine = part_of(out, place_.group_rank, place_.group_size, k_.lanes);
    const T* dp_t = transposed(b.dp, out, n, mine);
    group_barrier_.wait();
    accumulate(dp_t, mine, n, b.m_panels, hidden, first, b.dw_hr);
  }

  // What was accumulated goes out in T.
  void finish(int d) {
    const BackwardBuffers<T>& b = layout_.direction[d];
    const DirectionGradients<T>& grads = a_.grads[d];
    const int64_t hidden = p_.hidden_size, out = p_.output_size();
    write(b.dw_ih, 4 * hidden * p_.input_size, grads.w_ih);
    write(b.dw_hh, 4 * hidden * out, grads.w_hh);
    write(b.dw_hr, out * hidden, grads.w_hr);
    write(b.db, 4 * hidden, grads.b_ih);
    write(b.db, 4 * hidden, grads.b_hh);
    write(b.dh, p_.batch * out, a_.dh0 == nullptr ? nullptr : a_.dh0 + d * p_.batch * out);
    write(b.dc, p_.batch * hidden, a_.dc0 == nullptr ? nullptr : a_.dc0 + d * p_.batch * hidden);
  }

  void write(const Acc<T>* from, int64_t size, T* to) {
    if (to == nullptr || static_cast<const void*>(from) == to) return;
    const Range mine = part_of(size, place_.group_rank, place_.group_size);
    narrow_all<T>(from + mine.begin, mine.size(), to + mine.begin);
  }

  // dx of the second direction was written to a buffer of its own.
  void add_directions() {
    if (a_.dx == nullptr || p_.directions == 1) return;
    everybody_.wait();
    const int rank = place_.direction_group * place_.group_size + place_.group_rank;
    const Range mine = part_of(steps_.rows() * p_.input_size, rank, plan_.threads());
    const T* other = layout_.direction[1].dx;
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      a_.dx[i] = from_acc<T>(to_acc(a_.dx[i]) + to_acc(other[i]));
    }
  }

  const BackwardArgs<T>& a_;
  const LstmProblem& p_;
  const CpuPlan& plan_;
  const Steps& steps_;
  const Kernels<T>& k_;
  const BackwardLayout<T>& layout_;
  const Place place_;
  Barrier& everybody_;
  Barrier& group_barrier_;
  Barrier& row_barrier_;
  const MemberRows rows_;
  const Range out_units_;     // this member's columns of dh, cut at panels
  const Range hidden_units_;  // and of the gates; the same where there is no projection
  std::vector<const T*> input_rows_, hidden_rows_;
};

}  // namespace

template <class T>
size_t backward_workspace(const BackwardArgs<T>& args, const CpuPlan& plan) {
  return BackwardLayout<T>(args, plan, nullptr).bytes;
}

template <class T>
bool backward(const BackwardArgs<T>& args, const CpuPlan& plan, void* workspace) {
  const BackwardLayout<T> layout(args, plan, workspace);
  TeamBarriers barriers(plan);
  return run_team(plan.threads(),
                  [&](int rank) { BackwardMember<T>(args, plan, layout, barriers, rank).run(); });
}

#define FUSED_LSTM_INSTANTIATE(T)                                                \
  template size_t backward_workspace<T>(const BackwardArgs<T>&, const CpuPlan&); \
  template bool backward<T>(const BackwardArgs<T>&, const CpuPlan&, void*)
FUSED_LSTM_INSTANTIATE(float);
FUSED_LSTM_INSTANTIATE(double);
#if defined(FUSED_LSTM_X86)
FUSED_LSTM_INSTANTIATE(bfloat16);
#endif

}  // namespace fused_lstm::cpu
