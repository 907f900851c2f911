// A few rows times a matrix as it lies: what is read once is not worth packing. Included after
// kernels_gemm.h inside an instruction set's namespace.

// Columns whose sums stay in L1 while the rows of the matrix stream by, a kilobyte of each: long
// enough for the processor to fetch ahead.
constexpr int kFewVectors = 16;
constexpr int kFewDepth = 8;  // rows of the matrix at once: a sum is loaded and stored for each 8

// chain[M][columns] += a[M, depth] * b[depth, columns], `columns` of at most kFewVectors vectors
template <class T, int M, int Depth>
FUSED_LSTM_INLINE void add_rows(const T* const (&a)[M], int64_t k, const T* b, int64_t b_stride,
                                int columns, Acc<T>* chain) {
  constexpr int lanes = kLanes<Acc<T>>;
  for (int col = 0; col < columns; col += lanes) {
    const int live = columns - col < lanes ? columns - col : lanes;
    Vec<T> entries[Depth];
#pragma GCC unroll 8
    for (int i = 0; i < Depth; ++i) entries[i] = load(b + i * b_stride + col, live);
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      Acc<T>* sums = chain + m * kFewVectors * lanes + col;
      Vec<T> sum = load(sums);
#pragma GCC unroll 8
      for (int i = 0; i < Depth; ++i) {
        sum = multiply_add_of(b, sum, broadcast_entry(a[m] + k + i), entries[i]);
      }
      store(sums, sum);
    }
  }
}

// The same sums in the same order as of a panel: in chains of kChain terms.
template <class T, int M>
void few_rows_tile(const FewRows<T>& g, int64_t row) {
  constexpr int lanes = kLanes<Acc<T>>, width = kFewVectors * lanes;
  const T* a[M];
  row_addresses<T, M>(a, g.a, row);
  for (int64_t done = 0; done < g.cols; done += width) {
    const int64_t col = g.col + done;
    const int columns = g.cols - done < width ? int(g.cols - done) : width;
    alignas(64) Acc<T> sums[M * width] = {}, chain[M * width];
    for (int64_t k0 = 0; k0 < g.k; k0 += kChain) {
      const int64_t end = g.k - k0 < kChain ? g.k : k0 + kChain;
      for (Acc<T>& each : chain) each = 0;
      int64_t k = k0;
      for (; k + kFewDepth <= end; k += kFewDepth) {
        add_rows<T, M, kFewDepth>(a, k, g.b + k * g.b_stride + col, g.b_stride, columns, chain);
      }
      for (; k < end; ++k) {
        add_rows<T, M, 1>(a, k, g.b + k * g.b_stride + col, g.b_stride, columns, chain);
      }
      for (int i = 0; i < M * width; ++i) sums[i] += chain[i];
    }
    for (int m = 0; m < M; ++m) {
      const Acc<T>* from = sums + m * width;
      Acc<T>* to = g.c.at(row + m) + col;
      for (int i = 0; i < columns; ++i) to[i] = from[i];
    }
  }
}

template <class T>
void few_rows(const FewRows<T>& g) {
  for_row_tiles<FUSED_LSTM_TILE_ROWS>(
      g.rows, [&](int, int64_t row, auto count) __attribute__((always_inline)) {
        few_rows_tile<T, decltype(count)::value>(g, row);
      });
}

// Not of pairs, which would have to be put side by side.
template <class T>
constexpr auto few_rows_of() {
  using Function = void (*)(const FewRows<T>&);
  if constexpr (kPair<T> == 1) {
    return Function(few_rows<T>);
  } else {
    return Function(nullptr);
  }
}
