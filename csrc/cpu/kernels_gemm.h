// Register tiles: kTileRows rows of A against a panel of 4 vectors. Included after vec.h inside an
// instruction set's namespace.
//
// A tile of M rows keeps 4 M accumulators, and needs 4 panel vectors and a broadcast beside them:
// 4 M + 5 <= registers gives M = 6 with 32 registers; with 16, M = 3 where one panel vector is held
// at a time.

#if defined(FUSED_LSTM_BFLOAT16_DOT)
FUSED_LSTM_INLINE VecF multiply_add(VecF acc, VecF a_pair, VecF b_pair) {
  return (VecF)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a_pair, (__m512bh)b_pair);
}
FUSED_LSTM_INLINE VecF multiply_add_of(const bfloat16*, VecF acc, VecF a, VecF b) {
  return multiply_add(acc, a, b);
}
#endif
FUSED_LSTM_INLINE VecF multiply_add_of(const float*, VecF acc, VecF a, VecF b) {
  return acc + a * b;
}
FUSED_LSTM_INLINE VecD multiply_add_of(const double*, VecD acc, VecD a, VecD b) {
  return acc + a * b;
}

// One panel entry (a pair for bfloat16) in every lane. `x - 0` is x for every x, so the compiler
// folds it into a broadcast, which it may not do for `x + 0`.
FUSED_LSTM_INLINE VecF broadcast_entry(const float* p) { return *p - VecF{}; }
FUSED_LSTM_INLINE VecD broadcast_entry(const double* p) { return *p - VecD{}; }
FUSED_LSTM_INLINE VecF broadcast_entry(const bfloat16* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return (VecF)(VecI32{} + pair);
}
// The last, single entry of an odd K.
FUSED_LSTM_INLINE VecF broadcast_last(const bfloat16* p) {
  return (VecF)(VecI32{} + int32_t(p->bits));
}

// A panel vector as it lies: `lanes` entries (pairs for bfloat16).
template <class T>
FUSED_LSTM_INLINE Vec<T> load_raw(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// n elements from p as they lie, of which the last may be half a pair; the rest is zero.
template <class T>
FUSED_LSTM_INLINE Vec<T> load_entries(const T* p, int64_t n) {
  constexpr int width = kLanes<Acc<T>> * kPair<T>;
  if (n >= width) return load_raw(p);
  if constexpr (kPair<T> == 1) {
    return load_some(p, int(n));
  } else {
    T buffer[width] = {};
    for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
    return load_raw(buffer);
  }
}

// acc[M][N] = a[M, k] * the first N vectors of a panel
template <class T, int M, int N>
FUSED_LSTM_INLINE void multiply(Vec<T> (&acc)[M][N], int64_t k, const T* a, int64_t a_stride,
                                const T* panel) {
  constexpr int pair = kPair<T>, width = kLanes<Acc<T>> * pair;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) acc[m][v] = Vec<T>{};
  }
  const int64_t whole = k / pair;
  for (int64_t i = 0; i < whole; ++i, panel += 4 * width) {
    Vec<T> b[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) b[v] = load_raw(panel + v * width);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const Vec<T> s = broadcast_entry(a + m * a_stride + i * pair);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[m][v] = multiply_add_of(a, acc[m][v], s, b[v]);
    }
  }
  if constexpr (pair == 2) {
    if (k % 2 != 0) {
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const Vec<T> s = broadcast_last(a + m * a_stride + k - 1);
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          acc[m][v] = multiply_add_of(a, acc[m][v], s, load_raw(panel + v * width));
        }
      }
    }
  }
}

// Terms added up in registers before they join the sum. A chain of n additions of like terms errs
// by about n, chains of n / m that are added up afterwards by n / sqrt(m); joining costs 3
// instructions for every kChain multiply-adds.
constexpr int64_t kChain = 128;

// sum[M][N] += a[M, k] * panel
template <class T, int M, int N>
FUSED_LSTM_INLINE void accumulate(Vec<T> (&sum)[M][N], int64_t k, const T* a, int64_t a_stride,
                                  const T* panel) {
  constexpr int64_t chain = kChain * kPair<T>;
  for (int64_t k0 = 0; k0 < k; k0 += chain) {
    Vec<T> acc[M][N];
    multiply<T, M, N>(acc, k - k0 < chain ? k - k0 : chain, a + k0, a_stride,
                      panel + k0 * 4 * kLanes<Acc<T>>);
    // Through memory: the registers are full.
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[m][v] += acc[m][v];
    }
  }
}

template <class T, int M, int N>
FUSED_LSTM_INLINE void start(Vec<T> (&sum)[M][N], const Acc<T>* init, int64_t stride) {
  constexpr int lanes = kLanes<Acc<T>>;
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < N; ++v) sum[m][v] = load(init + m * stride + v * lanes);
  }
}

template <int M>
struct RowCount {
  static constexpr int value = M;
};

template <int M, class F>
FUSED_LSTM_INLINE void with_row_count(int rows, const F& f) {
  if constexpr (M > 1) {
    if (rows < M) return with_row_count<M - 1>(rows, f);
  }
  f(RowCount<M>{});
}

// Calls f(first row, RowCount) over `rows` rows in tiles of nearly equal height, at most Most.
template <int Most, class F>
FUSED_LSTM_INLINE void for_row_tiles(int64_t rows, const F& f) {
  const int64_t tiles = (rows + Most - 1) / Most;
  int64_t row = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int height = int((rows - row) / (tiles - t));
    with_row_count<Most>(height, [&](auto count) __attribute__((always_inline)) { f(row, count); });
    row += height;
  }
}

template <class T, class Out, int M, int N>
__attribute__((noinline)) void gemm_tile(const PanelGemm<T, Out>& g, int64_t row) {
  constexpr int lanes = kLanes<Acc<T>>;
  const int last = g.cols - (N - 1) * lanes;  // columns in the last vector
  const Acc<T>* init = g.init == nullptr ? nullptr : g.init + row * g.init_stride;
  Vec<T> sum[M][N];
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < N; ++v) {
      sum[m][v] = init == nullptr
                      ? Vec<T>{}
                      : load(init + m * g.init_stride + v * lanes, v == N - 1 ? last : lanes);
    }
  }
  accumulate<T, M, N>(sum, g.k, g.a + row * g.a_stride, g.a_stride, g.panel);
  Out* c = g.c + row * g.c_stride;
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < N; ++v) {
      store(c + m * g.c_stride + v * lanes, sum[m][v], v == N - 1 ? last : lanes);
    }
  }
}

// N vectors of columns; fewer leave registers for more rows.
template <class T, class Out, int N>
void gemm_columns(const PanelGemm<T, Out>& g) {
  constexpr int most = (N <= 2 ? 2 : 1) * FUSED_LSTM_TILE_ROWS;
  for_row_tiles<most>(g.rows, [&](int64_t row, auto count) __attribute__((always_inline)) {
    gemm_tile<T, Out, decltype(count)::value, N>(g, row);
  });
}

template <class T, class Out>
void gemm(const PanelGemm<T, Out>& g) {
  constexpr int lanes = kLanes<Acc<T>>;
  if (g.cols <= lanes) return gemm_columns<T, Out, 1>(g);
  if (g.cols <= 2 * lanes) return gemm_columns<T, Out, 2>(g);
  if (g.cols <= 3 * lanes) return gemm_columns<T, Out, 3>(g);
  gemm_columns<T, Out, 4>(g);
}
