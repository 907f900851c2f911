// The workspace of the backward pass: which buffers there are, and who may touch them when.
//
// Members of a direction group walk a chunk of steps together, then multiply its products together,
// then walk the next. `own` means: the part that belongs to this member, which no other touches.
//
//   buffer            written by                  read by                      between them
//   w_h, w_x, w_r     prepare (shares)            walk, products               barrier "prepared"
//   dh, dc, c0        prepare (shares)            walk (own rows and units)    barrier "prepared"
//   dh                walk: pull_back (own)       walk: next step (own)        -
//   dh, dc            walk (own)                  finish (shares)              barrier "multiplied"
//   dh, dc, c0        finish reads, and the next direction's prepare writes, the same shares: -
//   dgates            walk: gradients (own)       walk: pull_back (own rows,   row barrier of the
//                                                 all units)                   step
//   dp                walk: project_back (own)    walk: unproject (own rows)   row barrier
//   dm                walk: unproject (own)       walk: gradients (own)        -
//   dgates, dp        walk                        products (all rows)          barrier "walked"
//   transposed        products (own units)        products (own units)         -
//   x_, h_, m_panels  products (shares)           products (all)               barrier "packed"
//   m                 products (shares)           products (all)               barrier "hidden"
//   all of a chunk    products                    the next chunk's walk        barrier "multiplied"
//   dw_*, db          products (own units)        finish (own shares)          barrier "multiplied"
//   dx                products (shares)           sum of directions            barrier of everybody
//   *_again           replay (own units)          walk, products (all)         barrier "replayed"
//   gates_again may be dgates: a gate is read where, and before, its gradient is written.
#pragma once

#include "backward_chunks.h"
#include "layer.h"
#include "workspace.h"

namespace fused_lstm::cpu {

// What one direction needs; null where nobody asks for what it serves.
template <class T>
struct BackwardDirection {
  T* w_h;                             // panels of W_hh, [4H, P] as it lies, unless read in place
  T* w_x;                             // panels of W_ih, [4H, I]
  T* w_r;                             // panels of W_hr, [P, H]
  Acc<T>* dh;                         // [B, P] gradient that later steps left for h
  Acc<T>* dc;                         // [B, H] and for c
  Acc<T>* c0;                         // [B, H]
  T* dgates;                          // [chunk, 4H]
  T* dp;                              // [chunk, P] gradient of the projected output
  Acc<T>* dm;                         // [B, H] gradient of o * tanh(c) under a projection
  T* m;                               // [chunk, H] o * tanh(c)
  T* transposed;                      // [4H, transposed_stride] dgates, or dp, by columns
  T* x_panels;                        // panels of the chunk's inputs, [chunk, I]
  T* h_panels;                        // of its previous outputs, [chunk, P]
  T* m_panels;                        // of m
  Acc<T>*dw_ih, *dw_hh, *db, *dw_hr;  // sums over all chunks
  T* dx;
  T* gates_again;   // [block, 4H], where they are computed again
  Acc<T>* c_again;  // [block, H]
  T* h_again;       // [B, H] outputs nobody reads
  T* h0;            // [P] of zeros, for rows without an initial state
};

// What one member needs for itself.
template <class T>
struct BackwardScratch {
  const T** rows;         // [chunk] where rows to be packed lie
  const Acc<T>** c_rows;  // [rows] where c lies before a step in which some rows begin

  // Where rows have places: [rows] where saved and given values of a step lie, and [chunk] dx.
  const T **gates_rows, **dy_rows;
  const Acc<T>**c_here_rows, **dc_rows;
  T** dx_rows;

  // Where steps are computed again: [B] rows of a step, and one panel of each.
  const T **x_rows, **h_rows;
  const Acc<T>** c_again_rows;
  T *w_x, *w_h;
  T *x_operands, *h_operands;
  Acc<T>* bias;

  T* operands;  // rows of a product as the kernels read them, if not as they lie
};

template <class T>
class BackwardLayout {
 public:
  BackwardLayout(const BackwardArgs<T>& args, const CpuPlan& plan, void* base)
      : args_(args), plan_(plan) {
    for (int d = 0; d < args.problem.directions; ++d) {
      const ChunkSizes sizes = chunk_sizes(args.problem, *args.steps, plan,
                                           TimeOrder(*args.steps, args.weights[d].reverse));
      chunk_rows_ = std::max(chunk_rows_, sizes.rows);
      block_rows_ = std::max(block_rows_, sizes.block_rows);
      blocks_are_chunks_ &= sizes.blocks_are_chunks;
    }
    Arena arena(base);
    for (int d = 0; d < args.problem.directions; ++d) {
      // Directions that a group walks one after the other share the buffers of a chunk.
      const int owner = d < plan.direction_groups ? d : 0;
      if (d == owner) carve_chunk(arena, &direction_[d]);
      if (d != owner) direction_[d] = direction_[owner];
      carve_direction(d, arena, &direction_[d]);
    }
    scratch_base_ = base == nullptr ? nullptr : static_cast<char*>(base) + arena.used();
    Arena one(nullptr);
    carve_scratch(one);
    scratch_bytes_ = one.used();
    bytes_ = arena.used() + plan.threads() * scratch_bytes_;
  }

  size_t bytes() const { return bytes_; }
  const BackwardDirection<T>& direction(int d) const { return direction_[d]; }
  BackwardScratch<T> scratch(int rank) const {
    Arena arena(scratch_base_ + rank * scratch_bytes_);
    return carve_scratch(arena);
  }
  // Not a multiple of 4096 bytes, so that the rows of a tile fall into different cache sets.
  int64_t transposed_stride() const { return padded<T>(chunk_rows_) + 64 / int64_t(sizeof(T)); }

 private:
  int64_t panels(int64_t columns, int64_t k) const {
    return args_.kernels->panels_size(columns, k);
  }

  void carve_chunk(Arena& arena, BackwardDirection<T>* b) const {
    const LstmProblem& p = args_.problem;
    const int64_t hidden = p.hidden_size, out = p.output_size(), batch = p.batch;
    const bool projected = p.proj_size > 0;
    bool w_ih = false, w_hh = false, w_hr = false;
    for (int d = 0; d < p.directions; ++d) {
      w_ih |= args_.grads[d].w_ih != nullptr;
      w_hh |= args_.grads[d].w_hh != nullptr;
      w_hr |= args_.grads[d].w_hr != nullptr;
    }
    *b = {};
    if (!plan_.in_place) {
      b->w_h = arena.take<T>(panels(out, 4 * hidden));
      if (args_.dx != nullptr) b->w_x = arena.take<T>(panels(p.input_size, 4 * hidden));
      if (projected) b->w_r = arena.take<T>(panels(hidden, out));
    }
    b->dh = arena.take<Acc<T>>(batch * out);
    b->dc = arena.take<Acc<T>>(batch * hidden);
    b->c0 = arena.take<Acc<T>>(batch * hidden);
    b->dgates = arena.take<T>(chunk_rows_ * 4 * hidden);
    b->transposed = arena.take<T>(std::max(4 * hidden, out) * transposed_stride());
    if (projected) b->dp = arena.take<T>(chunk_rows_ * out);
    if (projected) b->dm = arena.take<Acc<T>>(batch * hidden);
    if (w_ih) b->x_panels = arena.take<T>(panels(p.input_size, chunk_rows_));
    if (w_hh) b->h_panels = arena.take<T>(panels(out, chunk_rows_));
    if (w_hr) b->m = arena.take<T>(chunk_rows_ * hidden);
    if (w_hr) b->m_panels = arena.take<T>(panels(hidden, chunk_rows_));
    if (p.keep_every == 0) return;
    // Where a block is a chunk and nobody asks for the gates after the walk, their gradients take
    // their places: gate_gradient reads all of a vector before it writes there.
    const bool in_place = blocks_are_chunks_ && !w_hr;
    b->gates_again = in_place ? b->dgates : arena.take<T>(block_rows_ * 4 * hidden);
    b->c_again = arena.take<Acc<T>>(block_rows_ * hidden);
    b->h_again = arena.take<T>(batch * hidden);
    b->h0 = arena.take<T>(out);
  }

  void carve_direction(int d, Arena& arena, BackwardDirection<T>* b) const {
    const LstmProblem& p = args_.problem;
    const DirectionGradients<T>& grads = args_.grads[d];
    b->dw_ih = sums(grads.w_ih, 4 * p.hidden_size * p.input_size, arena);
    b->dw_hh = sums(grads.w_hh, 4 * p.hidden_size * p.output_size(), arena);
    b->dw_hr = sums(grads.w_hr, p.hidden_size * p.output_size(), arena);
    b->db = sums(grads.b_ih != nullptr ? grads.b_ih : grads.b_hh, 4 * p.hidden_size, arena);
    b->dx = args_.dx;
    if (d > 0 && args_.dx != nullptr) b->dx = arena.take<T>(p.rows * p.input_size);
  }

  // The gradient itself where it can hold the sums, else a buffer.
  static Acc<T>* sums(T* grad, int64_t size, Arena& arena) {
    if (grad == nullptr) return nullptr;
    if constexpr (std::is_same_v<T, Acc<T>>) {
      return grad;
    } else {
      return arena.take<Acc<T>>(size);
    }
  }

  BackwardScratch<T> carve_scratch(Arena& arena) const {
    BackwardScratch<T> s{};
    const LstmProblem& p = args_.problem;
    const int64_t rows = ceil_div(p.batch, plan_.row_groups);
    s.rows = arena.take<const T*>(chunk_rows_);
    if (p.packed) s.c_rows = arena.take<const Acc<T>*>(rows);
    if (args_.steps->placed()) {
      s.gates_rows = arena.take<const T*>(rows);
      s.dy_rows = arena.take<const T*>(rows);
      s.c_here_rows = arena.take<const Acc<T>*>(rows);
      s.dc_rows = arena.take<const Acc<T>*>(rows);
      s.dx_rows = arena.take<T*>(chunk_rows_);
    }
    const Kernels<T>& k = *args_.kernels;
    const int64_t gates = 4 * p.hidden_size, out = p.output_size();
    const int64_t group = plan_.row_groups * plan_.unit_groups;
    const auto share = [&](int64_t n) { return ceil_div(ceil_div(n, k.lanes), group) * k.lanes; };
    s.operands = arena.take<T>(std::max({
        k.rows_size(rows, std::max(gates, out)),                       // of a step
        k.rows_size(ceil_div(chunk_rows_, group), gates),              // dx
        k.rows_size(std::max(share(gates), share(out)), chunk_rows_),  // dW
    }));
    if (p.keep_every > 0) {
      s.x_operands = arena.take<T>(k.rows_size(p.batch, p.input_size));
      s.h_operands = arena.take<T>(k.rows_size(p.batch, out));
      const int64_t width = args_.kernels->width();
      s.x_rows = arena.take<const T*>(p.batch);
      s.h_rows = arena.take<const T*>(p.batch);
      s.c_again_rows = arena.take<const Acc<T>*>(p.batch);
      s.w_x = arena.take<T>(args_.kernels->panel_size(p.input_size));
      s.w_h = arena.take<T>(args_.kernels->panel_size(p.output_size()));
      s.bias = arena.take<Acc<T>>(width);
    }
    return s;
  }

  const BackwardArgs<T>& args_;
  const CpuPlan& plan_;
  BackwardDirection<T> direction_[2];
  int64_t chunk_rows_ = 0, block_rows_ = 0;
  bool blocks_are_chunks_ = true;
  char* scratch_base_;
  size_t scratch_bytes_, bytes_;
};

}  // namespace fused_lstm::cpu
