// The workspace of the backward pass.
#pragma once

#include "layer.h"
#include "member.h"

namespace fused_lstm::cpu {

// Rows of K that a panel holds for depth k.
template <class T>
int64_t padded(int64_t k) {
  return ceil_div(k, kPair<T>) * kPair<T>;
}

// What one direction needs; null where nobody asks for what it serves.
template <class T>
struct BackwardBuffers {
  T* w_h;                             // panels of W_hh, [4H, P] as it lies
  T* w_x;                             // panels of W_ih, [4H, I]
  T* w_r;                             // panels of W_hr, [P, H]
  Acc<T>* dh;                         // [B, P] gradient that later steps left for h
  Acc<T>* dc;                         // [B, H] and for c
  Acc<T>* c0;                         // [B, H]
  T* dgates;                          // [chunk, 4H]
  T* dp;                              // [chunk, P] gradient of the projected output
  Acc<T>* dm;                         // [B, H] gradient of o * tanh(c) under a projection
  T* m;                               // [chunk, H] o * tanh(c)
  T* x_panels;                        // panels of the chunk's inputs, [chunk, I]
  T* h_panels;                        // of its previous outputs, [chunk, P]
  T* m_panels;                        // of m
  Acc<T>*dw_ih, *dw_hh, *db, *dw_hr;  // sums over all chunks
  T* dx;
};

template <class T>
struct BackwardLayout {
  BackwardBuffers<T> direction[2];
  T* transposed[2];  // per direction group: [4H, transposed_stride]
  int64_t transposed_stride;
  int64_t chunk_rows;
  size_t bytes;

  BackwardLayout(const BackwardArgs<T>& args, const CpuPlan& plan, void* base) {
    const LstmProblem& p = args.problem;
    chunk_rows = plan.chunk_steps * p.batch;
    // Not a multiple of 4096 bytes, so that the rows of a tile fall into different cache sets.
    transposed_stride = padded<T>(chunk_rows) + 64 / int64_t(sizeof(T));
    Carver carver(base);
    for (int g = 0; g < plan.direction_groups; ++g) {
      transposed[g] = carver.take<T>(4 * p.hidden_size * transposed_stride);
    }
    for (int d = 0; d < p.directions; ++d) {
      // Directions that a group walks one after the other share the buffers of a chunk.
      const int owner = d < plan.direction_groups ? d : 0;
      if (d == owner) carve_chunk(args, carver, &direction[d]);
      if (d != owner) direction[d] = direction[owner];
      carve_direction(args, d, carver, &direction[d]);
    }
    bytes = carver.used();
  }

 private:
  static int64_t panels(int64_t columns) {
    const int64_t width = 4 * kernels<T>().lanes;
    return ceil_div(columns, width) * width;
  }

  void carve_chunk(const BackwardArgs<T>& args, Carver& carver, BackwardBuffers<T>* b) {
    const LstmProblem& p = args.problem;
    const int64_t hidden = p.hidden_size, out = p.output_size(), batch = p.batch;
    const int64_t gates = padded<T>(4 * hidden), rows = padded<T>(chunk_rows);
    const bool projected = p.proj_size > 0;
    bool w_ih = false, w_hh = false, w_hr = false;
    for (int d = 0; d < p.directions; ++d) {
      w_ih |= args.grads[d].w_ih != nullptr;
      w_hh |= args.grads[d].w_hh != nullptr;
      w_hr |= args.grads[d].w_hr != nullptr;
    }
    *b = {};
    b->w_h = carver.take<T>(panels(out) * gates);
    if (args.dx != nullptr) b->w_x = carver.take<T>(panels(p.input_size) * gates);
    if (projected) b->w_r = carver.take<T>(panels(hidden) * padded<T>(out));
    b->dh = carver.take<Acc<T>>(batch * out);
    b->dc = carver.take<Acc<T>>(batch * hidden);
    b->c0 = carver.take<Acc<T>>(batch * hidden);
    b->dgates = carver.take<T>(chunk_rows * 4 * hidden);
    if (projected) b->dp = carver.take<T>(chunk_rows * out);
    if (projected) b->dm = carver.take<Acc<T>>(batch * hidden);
    if (w_ih) b->x_panels = carver.take<T>(panels(p.input_size) * rows);
    if (w_hh) b->h_panels = carver.take<T>(panels(out) * rows);
    if (w_hr) b->m = carver.take<T>(chunk_rows * hidden);
    if (w_hr) b->m_panels = carver.take<T>(panels(hidden) * rows);
  }

  void carve_direction(const BackwardArgs<T>& args, int d, Carver& carver, BackwardBuffers<T>* b) {
    const LstmProblem& p = args.problem;
    const DirectionGradients<T>& grads = args.grads[d];
    b->dw_ih = sums(grads.w_ih, 4 * p.hidden_size * p.input_size, carver);
    b->dw_hh = sums(grads.w_hh, 4 * p.hidden_size * p.output_size(), carver);
    b->dw_hr = sums(grads.w_hr, p.hidden_size * p.output_size(), carver);
    b->db = sums(grads.b_ih != nullptr ? grads.b_ih : grads.b_hh, 4 * p.hidden_size, carver);
    b->dx = args.dx;
    if (d > 0 && args.dx != nullptr) b->dx = carver.take<T>(p.rows * p.input_size);
  }

  // The gradient itself where it can hold the sums, else a buffer.
  static Acc<T>* sums(T* grad, int64_t size, Carver& carver) {
    if (grad == nullptr) return nullptr;
    if constexpr (std::is_same_v<T, Acc<T>>) {
      return grad;
    } else {
      return carver.take<Acc<T>>(size);
    }
  }
};

}  // namespace fused_lstm::cpu
