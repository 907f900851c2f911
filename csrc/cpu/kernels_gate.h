// The cell: gate steps on panels, gate steps on weights as they lie, and gate gradients. Included
// after kernels_gemm.h inside an instruction set's namespace.

// Rows whose elementwise work is written side by side. An exponential is a chain of a dozen
// instructions of 4 cycles each; more than a processor looks ahead lies between two rows' chains.
constexpr int kTogether = 3;

// Pre-activations -> gates, c and h of R rows.
template <class T, int R>
FUSED_LSTM_INLINE void finish_rows(const GateStep<T>& s, int64_t row, const Vec<T> (*pre)[4]) {
  Cell<T> cell[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    cell[r].step(pre[r], load(s.c_prev.at(row + r) + s.unit, s.units));
    store(s.c_next.at(row + r) + s.unit, cell[r].c(), s.units);
    if (s.gates.given()) {
      const Gates<Vec<T>> a = cell[r].gates();
      T* gates = s.gates.at(row + r) + s.unit;
      store(gates, a.i, s.units);
      store(gates + s.hidden, a.f, s.units);
      store(gates + 2 * s.hidden, a.g, s.units);
      store(gates + 3 * s.hidden, a.o, s.units);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) store(s.h_next.at(row + r) + s.unit, cell[r].h(), s.units);
}

template <class T, int M>
FUSED_LSTM_INLINE void finish_tile(const GateStep<T>& s, int64_t row, const Vec<T> (&pre)[M][4]) {
  int m = 0;
  for (; m + kTogether <= M; m += kTogether) finish_rows<T, kTogether>(s, row + m, pre + m);
  for (; m < M; ++m) finish_rows<T, 1>(s, row + m, pre + m);
}

template <class F, int M>
__attribute__((noinline)) void gate_tile(const GateStep<typename F::Element>& s, int tile,
                                         int64_t row) {
  using T = typename F::Element;
  Vec<T> pre[M][4];
  start<T, M, 4>(pre, s.init + row * s.init_stride, s.init_stride);
  const T* a[M];
  if (s.x_size > 0) {
    row_addresses<T, M>(a, s.x, row);
    F::template multiply_add<M, 4>(pre, s.x_size, a, s.w_x, s.w_x_ahead, tile);
  }
  if (s.h_size > 0) {
    row_addresses<T, M>(a, s.h_prev, row);
    F::template multiply_add<M, 4>(pre, s.h_size, a, s.w_h, s.w_h_ahead, tile);
  }
  finish_tile<T, M>(s, row, pre);
}

template <class F>
void gate_step(const GateStep<typename F::Element>& s) {
  for_row_tiles<FUSED_LSTM_TILE_ROWS>(
      s.rows, [&](int tile, int64_t row, auto count) __attribute__((always_inline)) {
        gate_tile<F, decltype(count)::value>(s, tile, row);
      });
}

// sums[m][r] += w[r, k] * x[m, k] lane by lane, for kRows weight rows, of which `live` exist, and M
// input rows: each vector of weights serves M products.
template <class T, int kRows, int M>
FUSED_LSTM_INLINE void dot_rows(Vec<T> (&sums)[M][kLanes<Acc<T>>], int first, const T* w,
                                int64_t w_stride, int live, const T* const (&x)[M], int64_t k) {
  constexpr int step = kLanes<Acc<T>> * kPair<T>;
  const T* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = w + (r < live ? r : live - 1) * w_stride;
  Vec<T> acc[M][kRows];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) acc[m][r] = Vec<T>{};
  }
  for (int64_t i = 0; i < k; i += step) {
    // Always a whole vector but at the end: the compiler makes two loops of it.
    const int64_t n = k - i;
    Vec<T> s[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) s[m] = load_entries(x[m] + i, n);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Vec<T> weights = load_entries(row[r] + i, n);
      if constexpr (M > 1) hold(weights);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][r] = multiply_add_of(w, acc[m][r], s[m], weights);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[m][first + r] += acc[m][r];
  }
}

// The products of one gate's rows with M input rows. Accumulators and operands fill the registers:
// 4 x 4 and 8, or 8 weight rows for one or two input rows, whose 4 alone would not hide the latency
// of a multiply-add.
template <class T, int M>
FUSED_LSTM_INLINE void dot_block(Vec<T> (&sums)[M][kLanes<Acc<T>>], const T* w, int64_t w_stride,
                                 int units, const T* const (&x)[M], int64_t k) {
  constexpr int lanes = kLanes<Acc<T>>;
  constexpr int wanted = M == 1 || (M == 2 && FUSED_LSTM_TILE_ROWS > 3) ? 8 : 4;
  constexpr int block = lanes < wanted ? lanes : wanted;
  for (int r = 0; r < units; r += block) {
    dot_rows<T, block, M>(sums, r, w + r * w_stride, w_stride, units - r, x, k);
  }
}

template <class T, int M>
__attribute__((noinline)) void gate_dot_tile(const GateDot<T>& d, int64_t row) {
  const GateStep<T>& s = d.step;
  constexpr int lanes = kLanes<Acc<T>>;
  const T *x[M], *h[M] = {};
  row_addresses<T, M>(x, s.x, row);
  if (s.h_size > 0) row_addresses<T, M>(h, s.h_prev, row);
  Vec<T> pre[M][4];
  for (int gate = 0; gate < 4; ++gate) {
    const int64_t first = gate * s.hidden + s.unit;
    Vec<T> sums[M][lanes] = {};
    dot_block<T, M>(sums, s.w_x + first * s.x_size, s.x_size, s.units, x, s.x_size);
    if (s.h_size > 0) {
      dot_block<T, M>(sums, s.w_h + first * s.h_size, s.h_size, s.units, h, s.h_size);
    }
    Vec<T> bias{};
    if (d.b_ih != nullptr) bias = load(d.b_ih + first, s.units) + load(d.b_hh + first, s.units);
    for (int m = 0; m < M; ++m) pre[m][gate] = bias + sum_lanes<Acc<T>>(sums[m]);
  }
  finish_tile<T, M>(s, row, pre);
}

template <class T>
void gate_dot(const GateDot<T>& d) {
  for_row_tiles<kDotRows>(d.step.rows,
                          [&](int, int64_t row, auto count) __attribute__((always_inline)) {
                            gate_dot_tile<T, decltype(count)::value>(d, row);
                          });
}

template <class T>
void gate_gradient(const GateGradient<T>& s) {
  using A = Acc<T>;
  const int n = s.units;
  for (int64_t row = 0; row < s.rows; ++row) {
    const T* gates = s.gates.at(row) + s.unit;
    const Gates<Vec<T>> a{load(gates, n), load(gates + s.hidden, n), load(gates + 2 * s.hidden, n),
                          load(gates + 3 * s.hidden, n)};
    const Vec<T> c_prev = load(s.c_prev.at(row) + s.unit, n);
    Vec<T> dh = load(s.dh.at(row) + s.unit, n);
    if (s.dy.given()) dh += load(s.dy.at(row) + s.unit, n);
    A* dc_row = s.dc.at(row) + s.unit;
    Vec<T> dc = load(dc_row, n);
    if (s.dc_out.given()) dc += load(s.dc_out.at(row) + s.unit, n);
    const Vec<T> tanh_c = cell_tanh<T>(load(s.c.at(row) + s.unit, n));
    const Gates<Vec<T>> d = gate_gradients(a, c_prev, tanh_c, dh, dc);
    store(dc_row, dc, n);
    T* dgates = s.dgates.at(row) + s.unit;
    store(dgates, d.i, n);
    store(dgates + s.hidden, d.f, n);
    store(dgates + 2 * s.hidden, d.g, n);
    store(dgates + 3 * s.hidden, d.o, n);
  }
}

template <class T>
void hidden(const T* o, const Acc<T>* c, int64_t n, T* h) {
  constexpr int lanes = kLanes<Acc<T>>;
  for (int64_t i = 0; i < n; i += lanes) {
    const int live = n - i < lanes ? int(n - i) : lanes;
    store(h + i, load(o + i, live) * cell_tanh<T>(load(c + i, live)), live);
  }
}
