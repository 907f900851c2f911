// The workspace of the forward pass.
#pragma once

#include "layer.h"
#include "workspace.h"

namespace fused_lstm::cpu {

// What one direction needs.
template <class T>
struct ForwardDirection {
  T* w_x;        // panels of W_ih, unless packed late
  T* w_h;        // panels of W_hh, likewise
  T* w_r;        // panels of W_hr
  Acc<T>* bias;  // [panels, 4 * lanes]
  Acc<T>* c0;    // [B, H] initial state, and the running one where c is not saved
  T* h0;         // [P] of zeros, for rows without an initial state
  T* m;          // [B, H] o * tanh(c) before the projection
};

// What one member needs for itself.
template <class T>
struct ForwardScratch {
  T *w_x, *w_h;     // one panel of each, where packed late
  Acc<T>* gates_x;  // [its panels, chunk rows, 4 * lanes]
  int64_t chunk_rows;
  const T** x_rows;  // [chunk rows] where the chunk's input rows lie, or [rows] of a step
  const T** h_rows;  // [rows] likewise the states of a step in which some rows begin
  const Acc<T>** c_rows;
  T **y_rows, **gates_rows;  // [rows] where a step's results go, if rows have places
  Acc<T>** c_next_rows;
  T* x_operands;  // rows of x as the kernels read them, if not as they lie
  T* h_operands;  // and of h, or of m
};

template <class T>
class ForwardLayout {
 public:
  ForwardLayout(const ForwardArgs<T>& args, const CpuPlan& plan, void* base)
      : args_(args), plan_(plan) {
    Arena arena(base);
    for (int d = 0; d < args.problem.directions; ++d) carve_direction(arena, d);
    scratch_base_ = base == nullptr ? nullptr : static_cast<char*>(base) + arena.used();
    Arena one(nullptr);
    carve_scratch(one);
    scratch_bytes_ = one.used();
    bytes_ = arena.used() + plan.threads() * scratch_bytes_;
  }

  size_t bytes() const { return bytes_; }
  const ForwardDirection<T>& direction(int d) const { return direction_[d]; }
  ForwardScratch<T> scratch(int rank) const {
    Arena arena(scratch_base_ + rank * scratch_bytes_);
    return carve_scratch(arena);
  }

 private:
  void carve_direction(Arena& arena, int d) {
    const LstmProblem& p = args_.problem;
    const Kernels<T>& k = *args_.kernels;
    const int64_t columns = ceil_div(p.hidden_size, k.lanes) * k.width();
    ForwardDirection<T>& b = direction_[d];
    b = {};
    b.c0 = arena.take<Acc<T>>(p.batch * p.hidden_size);
    if (args_.h0 == nullptr) b.h0 = arena.take<T>(p.output_size());
    if (p.proj_size > 0) b.m = arena.take<T>(p.batch * p.hidden_size);
    if (p.prepacked) {
      const WeightPanels<T>& w = args_.panels;
      b.w_x = w.w_x;
      b.w_h = w.w_h;
      b.w_r = w.w_r;
      b.bias = w.bias;
      return;
    }
    if (plan_.algorithm == Algorithm::dot) return;
    if (!plan_.pack_late) {
      b.w_x = arena.take<T>(args_.kernels->panels_size(columns, p.input_size));
      b.w_h = arena.take<T>(args_.kernels->panels_size(columns, p.output_size()));
    }
    b.bias = arena.take<Acc<T>>(columns);
    if (p.proj_size > 0) {
      b.w_r = arena.take<T>(args_.kernels->panels_size(p.proj_size, p.hidden_size));
    }
  }

  ForwardScratch<T> carve_scratch(Arena& arena) const {
    const LstmProblem& p = args_.problem;
    const int64_t rows = ceil_div(p.batch, plan_.row_groups), chunk = plan_.chunk_steps * rows;
    const int64_t panels =
        ceil_div(ceil_div(p.hidden_size, args_.kernels->lanes), plan_.unit_groups);
    ForwardScratch<T> s{};
    if (plan_.pack_late) {
      s.w_x = arena.take<T>(args_.kernels->panel_size(p.input_size));
      s.w_h = arena.take<T>(args_.kernels->panel_size(p.output_size()));
    }
    const bool batched = plan_.algorithm == Algorithm::panels && !plan_.fold_input;
    if (batched) {
      s.gates_x = arena.take<Acc<T>>(panels * chunk * args_.kernels->width());
      s.chunk_rows = chunk;
      s.x_rows = arena.take<const T*>(chunk);
    }
    if (plan_.algorithm == Algorithm::panels) {
      const Kernels<T>& k = *args_.kernels;
      s.x_operands = arena.take<T>(k.rows_size(batched ? chunk : rows, p.input_size));
      s.h_operands = arena.take<T>(k.rows_size(rows, std::max(p.output_size(), p.hidden_size)));
    }
    if (p.packed) {
      s.h_rows = arena.take<const T*>(rows);
      s.c_rows = arena.take<const Acc<T>*>(rows);
    }
    const bool listed = args_.steps->placed() || args_.x.members > 1;
    if (listed && !batched) s.x_rows = arena.take<const T*>(rows);
    if (args_.steps->placed()) {
      s.y_rows = arena.take<T*>(rows);
      s.gates_rows = arena.take<T*>(rows);
      s.c_next_rows = arena.take<Acc<T>*>(rows);
    }
    return s;
  }

  const ForwardArgs<T>& args_;
  const CpuPlan& plan_;
  ForwardDirection<T> direction_[2];
  char* scratch_base_;
  size_t scratch_bytes_, bytes_;
};

}  // namespace fused_lstm::cpu
