// The cell: gate steps on panels, gate steps on weights as they lie, and gate gradients. Included
// after kernels_gemm.h inside an instruction set's namespace.

// Pre-activations -> gates, c and h of one row.
template <class T>
FUSED_LSTM_INLINE void finish_row(const GateStep<T>& s, int64_t row, const Vec<T> (&pre)[4]) {
  using A = Acc<T>;
  const Gates<Vec<T>> a{sigmoid<A>(pre[0]), sigmoid<A>(pre[1]), tanh<A>(pre[2]),
                        sigmoid<A>(pre[3])};
  Vec<T> c_prev{};
  if (s.c_prev != nullptr) c_prev = load(s.c_prev + row * s.c_prev_stride, s.units);
  const Vec<T> c = cell_state(a, c_prev);
  store(s.c_next + row * s.c_next_stride, c, s.units);
  store(s.h_next + row * s.h_next_stride, hidden_state(a, tanh<A>(c)), s.units);
  if (s.gates != nullptr) {
    T* gates = s.gates + row * s.gates_stride;
    store(gates, a.i, s.units);
    store(gates + s.hidden, a.f, s.units);
    store(gates + 2 * s.hidden, a.g, s.units);
    store(gates + 3 * s.hidden, a.o, s.units);
  }
}

template <class T, int M>
__attribute__((noinline)) void gate_tile(const GateStep<T>& s, int64_t row) {
  Vec<T> pre[M][4];
  start<T, M, 4>(pre, s.init + row * s.init_stride, s.init_stride);
  if (s.x_size > 0) {
    accumulate<T, M, 4>(pre, s.x_size, s.x + row * s.x_stride, s.x_stride, s.w_x);
  }
  if (s.h_size > 0) {
    accumulate<T, M, 4>(pre, s.h_size, s.h_prev + row * s.h_stride, s.h_stride, s.w_h);
  }
  for (int m = 0; m < M; ++m) finish_row<T>(s, row + m, pre[m]);
}

template <class T>
void gate_step(const GateStep<T>& s) {
  for_row_tiles<FUSED_LSTM_TILE_ROWS>(
      s.rows, [&](int64_t row, auto count)
                  __attribute__((always_inline)) { gate_tile<T, decltype(count)::value>(s, row); });
}

// sums[m][r] += w[r, k] * x[m, k] lane by lane, for kRows weight rows, of which `live` exist, and M
// input rows: each vector of weights serves M products.
template <class T, int kRows, int M>
FUSED_LSTM_INLINE void dot_rows(Vec<T> (&sums)[M][kLanes<Acc<T>>], int first, const T* w,
                                int64_t w_stride, int live, const T* x, int64_t x_stride,
                                int64_t k) {
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
    const int n = k - i < step ? int(k - i) : step;
    Vec<T> s[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) s[m] = load_entries(x + m * x_stride + i, n);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> weights = load_entries(row[r] + i, n);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m][r] = multiply_add_of(x, acc[m][r], s[m], weights);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[m][first + r] += acc[m][r];
  }
}

// The products of one gate's rows with M input rows. 4 x 4 accumulators and 8 operands, or 8 and 9
// for a single row, whose 4 alone would not hide the latency of a multiply-add.
template <class T, int M>
FUSED_LSTM_INLINE void dot_block(Vec<T> (&sums)[M][kLanes<Acc<T>>], const T* w, int64_t w_stride,
                                 int units, const T* x, int64_t x_stride, int64_t k) {
  constexpr int lanes = kLanes<Acc<T>>, wanted = M == 1 ? 8 : 4;
  constexpr int block = lanes < wanted ? lanes : wanted;
  for (int r = 0; r < units; r += block) {
    dot_rows<T, block, M>(sums, r, w + r * w_stride, w_stride, units - r, x, x_stride, k);
  }
}

template <class T, int M>
__attribute__((noinline)) void gate_dot_tile(const GateDot<T>& d, int64_t row) {
  const GateStep<T>& s = d.step;
  constexpr int lanes = kLanes<Acc<T>>;
  Vec<T> pre[M][4];
  for (int gate = 0; gate < 4; ++gate) {
    Vec<T> sums[M][lanes] = {};
    dot_block<T, M>(sums, s.w_x + gate * s.hidden * d.w_x_stride, d.w_x_stride, s.units,
                    s.x + row * s.x_stride, s.x_stride, s.x_size);
    if (s.h_size > 0) {
      dot_block<T, M>(sums, s.w_h + gate * s.hidden * d.w_h_stride, d.w_h_stride, s.units,
                      s.h_prev + row * s.h_stride, s.h_stride, s.h_size);
    }
    Vec<T> bias{};
    if (d.b_ih != nullptr) {
      bias = load(d.b_ih + gate * s.hidden, s.units) + load(d.b_hh + gate * s.hidden, s.units);
    }
    for (int m = 0; m < M; ++m) {
      transpose<Acc<T>>(sums[m]);
#pragma GCC unroll 4
      for (int width = lanes / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
        for (int l = 0; l < width; ++l) sums[m][l] += sums[m][l + width];
      }
      pre[m][gate] = bias + sums[m][0];
    }
  }
  for (int m = 0; m < M; ++m) finish_row<T>(s, row + m, pre[m]);
}

template <class T>
void gate_dot(const GateDot<T>& d) {
  for_row_tiles<4>(d.step.rows, [&](int64_t row, auto count) __attribute__((always_inline)) {
    gate_dot_tile<T, decltype(count)::value>(d, row);
  });
}

template <class T>
void gate_gradient(const GateGradient<T>& s) {
  using A = Acc<T>;
  const int n = s.units;
  for (int64_t row = 0; row < s.rows; ++row) {
    const T* gates = s.gates + row * s.gates_stride;
    const Gates<Vec<T>> a{load(gates, n), load(gates + s.hidden, n), load(gates + 2 * s.hidden, n),
                          load(gates + 3 * s.hidden, n)};
    Vec<T> c_prev{}, dh{};
    if (s.c_prev != nullptr) c_prev = load(s.c_prev + row * s.c_prev_stride, n);
    if (s.dy != nullptr) dh += load(s.dy + row * s.dy_stride, n);
    if (s.dh != nullptr) dh += load(s.dh + row * s.dh_stride, n);
    A* dc_row = s.dc + row * s.dc_stride;
    Vec<T> dc = load(dc_row, n);
    const Vec<T> tanh_c = tanh<A>(load(s.c + row * s.c_stride, n));
    const Gates<Vec<T>> d = gate_gradients(a, c_prev, tanh_c, dh, dc);
    store(dc_row, dc, n);
    T* dgates = s.dgates + row * s.dgates_stride;
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
    store(h + i, load(o + i, live) * tanh<Acc<T>>(load(c + i, live)), live);
  }
}
