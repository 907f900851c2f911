// Register tiles: FUSED_LSTM_TILE_ROWS rows of A against a panel of 4 vectors. Included after vec.h
// inside an instruction set's namespace.
//
// A tile of M rows keeps 4 M accumulators, and needs min(M, 4) operands and one more beside them:
// M = 6 with 32 registers, M = 3 with 16.

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

// Rows that make loading the next panel early worth an instruction: with fewer, a tile waits for
// its own panel and the processor's own prefetching keeps up.
constexpr int kAheadRows = 3;
constexpr int64_t kLine = 64;  // bytes

// A tile of 3 x 4 vectors of 32 bytes takes 24 instructions for an entry of K: 12 multiply-adds, 7
// loads, a prefetch and 4 of the loop. Two multiply-adds a cycle ask for 4 instructions a cycle,
// which a core has not left for one thread where it runs two. With 4 entries in a round, and no
// prefetch where there is nothing to ask for, they are 20. Vectors of 64 bytes do as much in half
// as many.
constexpr bool kNarrow = FUSED_LSTM_VECTOR_BYTES < 64;
constexpr int kEntriesAtOnce = kNarrow ? 4 : 1;

// What a tile asks the cache for while it computes: one line per entry of K. Tile t of a panel
// takes the t-th line of every entry's share, so that a few tiles bring in all of the next panel.
template <class T>
FUSED_LSTM_INLINE const char* ahead_of_tile(const T* next, const T* panel, int64_t k, int tile) {
  constexpr int lines = 4 * FUSED_LSTM_VECTOR_BYTES / kLine;  // of one entry
  const int64_t entries = k / kPair<T>;
  // Nothing to ask for: what is in use already costs nothing.
  if (next == nullptr || tile >= lines) return reinterpret_cast<const char*>(panel);
  return reinterpret_cast<const char*>(next) + tile * entries * kLine;
}

// acc[M][N] += the entries of M rows (in every lane) times N vectors of a panel. What there is less
// of is held: beside M N accumulators min(M, N) operands and one more have to fit the registers.
template <class T, int M, int N, class Entry>
FUSED_LSTM_INLINE void outer_product(Vec<T> (&acc)[M][N], const Entry& entry, const T* panel) {
  constexpr int width = kLanes<Acc<T>> * kPair<T>;
  if constexpr (M < N) {
    Vec<T> s[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) s[m] = entry(m);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      Vec<T> b = load_raw(panel + v * width);
      if constexpr (M > 1) hold(b);
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) acc[m][v] = multiply_add_of(panel, acc[m][v], s[m], b);
    }
  } else {
    Vec<T> b[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      b[v] = load_raw(panel + v * width);
      if constexpr (M > 1) hold(b[v]);
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const Vec<T> s = entry(m);
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) acc[m][v] = multiply_add_of(panel, acc[m][v], s, b[v]);
    }
  }
}

// acc[M][N] = a[M, k] * the first N vectors of a panel; `asks` for what is ahead.
template <bool asks, class T, int M, int N>
FUSED_LSTM_INLINE void multiply(Vec<T> (&acc)[M][N], int64_t k, const T* const (&a)[M],
                                const T* panel, const char* ahead) {
  constexpr int pair = kPair<T>, width = kLanes<Acc<T>> * pair;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) acc[m][v] = Vec<T>{};
  }
  const int64_t whole = k / pair;
#pragma GCC unroll kEntriesAtOnce
  for (int64_t i = 0; i < whole; ++i, panel += 4 * width) {
    if constexpr (asks) __builtin_prefetch(ahead + i * kLine, 0, 2);
    outer_product<T, M, N>(
        acc, [&](int m) __attribute__((always_inline)) { return broadcast_entry(a[m] + i * pair); },
        panel);
  }
  if constexpr (pair == 2) {
    if (k % 2 != 0) {
      outer_product<T, M, N>(
          acc, [&](int m) __attribute__((always_inline)) { return broadcast_last(a[m] + k - 1); },
          panel);
    }
  }
}

// Terms added up in registers before they join the sum. A chain of n additions of like terms errs
// by about n, chains of n / m that are added up afterwards by n / sqrt(m); joining costs 3
// instructions for every kChain multiply-adds.
constexpr int64_t kChain = 128;

template <bool asks, class T, int M, int N>
FUSED_LSTM_INLINE void add_chains(Vec<T> (&sum)[M][N], int64_t k, const T* (&a)[M], const T* panel,
                                  const char* ahead) {
  constexpr int64_t chain = kChain * kPair<T>;
  for (int64_t k0 = 0; k0 < k; k0 += chain) {
    Vec<T> acc[M][N];
    multiply<asks, T, M, N>(acc, k - k0 < chain ? k - k0 : chain, a,
                            panel + k0 * 4 * kLanes<Acc<T>>, ahead + k0 / kPair<T> * kLine);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) a[m] += chain;
    // Through memory: the registers are full.
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[m][v] += acc[m][v];
    }
  }
}

// sum[M][N] += a[M, k] * panel
template <class T, int M, int N>
FUSED_LSTM_INLINE void accumulate(Vec<T> (&sum)[M][N], int64_t k, const T* (&a)[M], const T* panel,
                                  const char* ahead) {
  constexpr bool asks = M >= kAheadRows;
  if constexpr (asks && kNarrow) {
    if (ahead == reinterpret_cast<const char*>(panel)) {
      return add_chains<false, T, M, N>(sum, k, a, panel, ahead);
    }
  }
  add_chains<asks, T, M, N>(sum, k, a, panel, ahead);
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

// Calls f(tile, first row, RowCount) over `rows` rows in tiles of nearly equal height, at most
// Most.
template <int Most, class F>
FUSED_LSTM_INLINE void for_row_tiles(int64_t rows, const F& f) {
  const int64_t tiles = (rows + Most - 1) / Most;
  int64_t row = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const int height = int((rows - row) / (tiles - t));
    with_row_count<Most>(height,
                         [&](auto count) __attribute__((always_inline)) { f(int(t), row, count); });
    row += height;
  }
}

template <class T, int M>
FUSED_LSTM_INLINE void row_addresses(const T* (&a)[M], const Rows<const T>& rows, int64_t row) {
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) a[m] = rows.at(row + m);
}

// The entries of `n` columns of one row of K, or of the two that form a pair; null is zero.
FUSED_LSTM_INLINE VecF column_entries(const float* row, const float*, int64_t col, int n) {
  return row == nullptr ? VecF{} : load(row + col, n);
}
FUSED_LSTM_INLINE VecD column_entries(const double* row, const double*, int64_t col, int n) {
  return row == nullptr ? VecD{} : load(row + col, n);
}
FUSED_LSTM_INLINE VecF column_entries(const bfloat16* row, const bfloat16* next, int64_t col,
                                      int n) {
  const VecF first = row == nullptr ? VecF{} : load(row + col, n);
  const VecF second = next == nullptr ? VecF{} : load(next + col, n);
  return (VecF)(((VecU32)first >> 16) | (VecU32)second);
}

// How tensors of T become the operands of products: as they are.
template <class T>
struct Direct {
  using Element = T;
  using Operand = T;

  // sum[M][N] += a[M, k] * panel, whose successor is `next`
  template <int M, int N>
  static FUSED_LSTM_INLINE void multiply_add(Vec<T> (&sum)[M][N], int64_t k, const T* (&a)[M],
                                             const T* panel, const T* next, int tile) {
    accumulate<T, M, N>(sum, k, a, panel, ahead_of_tile(next, panel, k, tile));
  }

  // The n entries of a panel that begin at p, along K; what is missing is zero.
  static FUSED_LSTM_INLINE Vec<T> entries(const T* p, int64_t n) { return load_entries(p, n); }
  // The entries of n columns from `col` on, of one row of K, or of the two that form a pair; null
  // is zero.
  static FUSED_LSTM_INLINE Vec<T> columns(const T* row, const T* next, int64_t col, int n) {
    return column_entries(row, next, col, n);
  }
};

template <class F, class Out, int M, int N>
__attribute__((noinline)) void gemm_tile(const PanelGemm<typename F::Element, Out>& g, int tile,
                                         int64_t row) {
  using T = typename F::Element;
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
  const T* a[M];
  row_addresses<T, M>(a, g.a, row);
  F::template multiply_add<M, N>(sum, g.k, a, g.panel, g.ahead, tile);
  for (int m = 0; m < M; ++m) {
    Out* c = g.c.at(row + m) + g.col;
    for (int v = 0; v < N; ++v) store(c + v * lanes, sum[m][v], v == N - 1 ? last : lanes);
  }
}

// N vectors of columns; fewer leave registers for more rows.
template <class F, class Out, int N>
void gemm_columns(const PanelGemm<typename F::Element, Out>& g) {
  constexpr int most = (N <= 2 ? 2 : 1) * FUSED_LSTM_TILE_ROWS;
  for_row_tiles<most>(g.rows,
                      [&](int tile, int64_t row, auto count) __attribute__((always_inline)) {
                        gemm_tile<F, Out, decltype(count)::value, N>(g, tile, row);
                      });
}

template <class F, class Out>
void gemm(const PanelGemm<typename F::Element, Out>& g) {
  constexpr int lanes = kLanes<Acc<typename F::Element>>;
  if (g.cols <= lanes) return gemm_columns<F, Out, 1>(g);
  if (g.cols <= 2 * lanes) return gemm_columns<F, Out, 2>(g);
  if (g.cols <= 3 * lanes) return gemm_columns<F, Out, 3>(g);
  gemm_columns<F, Out, 4>(g);
}
