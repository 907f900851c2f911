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

// acc[M][4] += a[M, k] * panel
template <class T, int M>
FUSED_LSTM_INLINE void multiply(Vec<T> (&acc)[M][4], int64_t k, const T* a, int64_t a_stride,
                                const T* panel) {
  constexpr int pair = kPair<T>, width = kLanes<Acc<T>> * pair;
  const int64_t whole = k / pair;
  for (int64_t i = 0; i < whole; ++i, panel += 4 * width) {
    Vec<T> b[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) b[v] = load_raw(panel + v * width);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Vec<T> s = broadcast_entry(a + m * a_stride + i * pair);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) acc[m][v] = multiply_add_of(a, acc[m][v], s, b[v]);
    }
  }
  if constexpr (pair == 2) {
    if (k % 2 != 0) {
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const Vec<T> s = broadcast_last(a + m * a_stride + k - 1);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          acc[m][v] = multiply_add_of(a, acc[m][v], s, load_raw(panel + v * width));
      }
    }
  }
}

template <class T, int M>
FUSED_LSTM_INLINE void start(Vec<T> (&acc)[M][4], const Acc<T>* init, int64_t stride) {
  constexpr int lanes = kLanes<Acc<T>>;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      acc[m][v] = init != nullptr ? load(init + m * stride + v * lanes) : Vec<T>{};
    }
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

// Calls f(first row, RowCount) over `rows` rows in tiles of nearly equal height.
template <class F>
FUSED_LSTM_INLINE void for_row_tiles(int64_t rows, const F& f) {
  constexpr int most = FUSED_LSTM_TILE_ROWS;
  const int64_t tiles = (rows + most - 1) / most;
  int64_t row = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int height = int((rows - row) / (tiles - t));
    with_row_count<most>(height, [&](auto count) __attribute__((always_inline)) { f(row, count); });
    row += height;
  }
}

template <class T, class Out, int M>
__attribute__((noinline)) void gemm_tile(const PanelGemm<T, Out>& g, int64_t row) {
  constexpr int lanes = kLanes<Acc<T>>;
  Vec<T> acc[M][4];
  start<T, M>(acc, g.init == nullptr ? nullptr : g.init + row * g.init_stride, g.init_stride);
  multiply<T, M>(acc, g.k, g.a + row * g.a_stride, g.a_stride, g.panel);
  Out* c = g.c + row * g.c_stride;
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int live = g.cols - v * lanes;
      if (live >= lanes) {
        store(c + m * g.c_stride + v * lanes, acc[m][v]);
      } else if (live > 0) {
        store(c + m * g.c_stride + v * lanes, acc[m][v], live);
      }
    }
  }
}

template <class T, class Out>
void gemm(const PanelGemm<T, Out>& g) {
  for_row_tiles(g.rows, [&](int64_t row, auto count) __attribute__((always_inline)) {
    gemm_tile<T, Out, decltype(count)::value>(g, row);
  });
}
