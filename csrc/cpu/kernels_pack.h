// Packing and transposing, on entries of one accumulator's width: a float, a double, or a pair of
// bfloat16 that lie one after the other along K. Included after kernels_gate.h inside an
// instruction set's namespace.

template <class T>
FUSED_LSTM_INLINE void store_raw(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Up to `lanes` entries of K of the `live` rows from src on, transposed; so many elements of each
// are left. A `whole` block has all of both, here and below: loops whose ends the compiler knows
// take a sixth less time.
template <class F, bool whole>
FUSED_LSTM_INLINE void pack_block(const typename F::Element* src, int64_t stride, int live,
                                  int64_t left, typename F::Operand* out) {
  using A = Acc<typename F::Element>;
  constexpr int pair = kPair<typename F::Operand>, lanes = kLanes<A>, width = lanes * pair;
  const int64_t elements = whole ? width : left;
  Vec<A> block[lanes];
#pragma GCC unroll 16
  for (int l = 0; l < lanes; ++l) {
    block[l] = whole || l < live ? F::entries(src + l * stride, elements) : Vec<A>{};
  }
  transpose<A>(block);
  const int64_t entries = (elements + pair - 1) / pair;
#pragma GCC unroll 16
  for (int64_t j = 0; j < lanes; ++j) {
    if (whole || j < entries) store_raw(out + j * 4 * width, block[j]);
  }
}

template <class F>
void pack_transposed(const PackTransposed<typename F::Element>& s, typename F::Operand* panel) {
  using T = typename F::Element;
  constexpr int pair = kPair<typename F::Operand>, lanes = kLanes<Acc<T>>, width = lanes * pair;
  for (int group = 0; group < 4; ++group) {
    const T* src = s.src + (s.row0 + group * s.group_stride) * s.src_stride;
    typename F::Operand* out = panel + group * width;
    const int live = s.live[group];
    int64_t k = 0;
    for (; live == lanes && k + width <= s.k; k += width) {
      pack_block<F, true>(src + k, s.src_stride, live, s.k - k, out + k * 4 * lanes);
    }
    for (; k < s.k; k += width) {
      pack_block<F, false>(src + k, s.src_stride, live, s.k - k, out + k * 4 * lanes);
    }
  }
}

template <class T>
void pack_transposed_directly(const PackTransposed<T>& s) {
  pack_transposed<Direct<T>>(s, s.panel);
}

// Rows ahead of the one that is read. Those of a list may lie anywhere, where the processor's own
// prefetching does not look: 16 rows take as long as memory, some 100 ns.
constexpr int64_t kRowsAhead = 16;

template <class T>
FUSED_LSTM_INLINE void fetch_ahead(const PackRows<T>& s, int64_t k, int64_t end) {
  for (; k < s.k && k < end; ++k) {
    const T* row = s.rows.at(k);
    if (row == nullptr) continue;
    for (int i = 0; i < s.cols; i += int(kLine / sizeof(T))) __builtin_prefetch(row + s.col0 + i);
  }
}

// One entry of K, of all columns or of the first `cols`.
template <class F, bool whole>
FUSED_LSTM_INLINE void pack_entry(const typename F::Element* row, const typename F::Element* next,
                                  int64_t col, int cols, typename F::Operand* out) {
  using A = Acc<typename F::Element>;
  constexpr int lanes = kLanes<A>, width = lanes * kPair<typename F::Operand>;
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const int left = whole ? lanes : cols - v * lanes;
    const int live = left < lanes ? left : lanes;
    store_raw(out + v * width, live <= 0 ? Vec<A>{} : F::columns(row, next, col + v * lanes, live));
  }
}

template <class F>
void pack_rows(const PackRows<typename F::Element>& s, typename F::Operand* out) {
  using T = typename F::Element;
  constexpr int pair = kPair<typename F::Operand>, lanes = kLanes<Acc<T>>, width = lanes * pair;
  for (int64_t k = 0; k < s.k; k += pair, out += 4 * width) {
    const T* row = s.rows.at(k);
    const T* next = pair == 2 && k + 1 < s.k ? s.rows.at(k + 1) : nullptr;
    if (s.rows.list != nullptr) fetch_ahead(s, k + kRowsAhead, k + kRowsAhead + pair);
    if (s.cols == 4 * lanes) {
      pack_entry<F, true>(row, next, s.col0, s.cols, out);
    } else {
      pack_entry<F, false>(row, next, s.col0, s.cols, out);
    }
  }
}

template <class T>
void pack_rows_directly(const PackRows<T>& s) {
  pack_rows<Direct<T>>(s, s.panel);
}

// Up to lanes * pair rows of up to `lanes` columns.
template <class T, bool whole>
FUSED_LSTM_INLINE void transpose_block(const T* src, int64_t src_stride, int64_t rows, int cols,
                                       T* dst, int64_t dst_stride) {
  constexpr int lanes = kLanes<Acc<T>>, pair = kPair<T>;
  Vec<T> block[lanes];
#pragma GCC unroll 16
  for (int e = 0; e < lanes; ++e) {
    block[e] = Vec<T>{};
    if (!whole && e * pair >= rows) continue;
    const T* row = src + e * pair * src_stride;
    const T* next = pair == 2 && (whole || e * pair + 1 < rows) ? row + src_stride : nullptr;
    block[e] = column_entries(row, next, 0, whole ? lanes : cols);
  }
  transpose<Acc<T>>(block);
  const int64_t padded = (rows + pair - 1) / pair * pair;
#pragma GCC unroll 16
  for (int j = 0; j < lanes; ++j) {
    if (whole) {
      store_raw(dst + j * dst_stride, block[j]);
    } else if (j < cols) {
      T buffer[lanes * pair];
      store_raw(buffer, block[j]);
      for (int64_t i = 0; i < lanes * pair && i < padded; ++i) dst[j * dst_stride + i] = buffer[i];
    }
  }
}

template <class T>
void transpose_rows(const Transpose<T>& s) {
  constexpr int lanes = kLanes<Acc<T>>, most = lanes * kPair<T>;
  for (int64_t row = 0; row < s.rows; row += most) {
    const T* src = s.src + row * s.src_stride;
    for (int64_t col = 0; col < s.cols; col += lanes) {
      const int64_t rows = s.rows - row;
      const int cols = s.cols - col < lanes ? int(s.cols - col) : lanes;
      T* dst = s.dst + col * s.dst_stride + row;
      if (rows >= most && cols == lanes) {
        transpose_block<T, true>(src + col, s.src_stride, rows, cols, dst, s.dst_stride);
      } else {
        transpose_block<T, false>(src + col, s.src_stride, rows, cols, dst, s.dst_stride);
      }
    }
  }
}

template <class T>
void row_sums(const T* a, int64_t a_stride, int64_t rows, int64_t k, Acc<T>* sums) {
  constexpr int lanes = kLanes<Acc<T>>;
  for (int64_t r = 0; r < rows; ++r) {
    Vec<T> acc[4] = {};
    const T* row = a + r * a_stride;
    for (int64_t i = 0; i < k; i += 4 * lanes) {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const int64_t live = k - i - v * lanes;
        if (live > 0) acc[v] += load(row + i + v * lanes, live < lanes ? int(live) : lanes);
      }
    }
    const Vec<T> total = (acc[0] + acc[1]) + (acc[2] + acc[3]);
    Acc<T> sum = 0;
    for (int l = 0; l < lanes; ++l) sum += total[l];
    sums[r] += sum;
  }
}

template <class T>
constexpr Kernels<T> kTable = {
    kLanes<Acc<T>>,
    FUSED_LSTM_TILE_ROWS,
    kPair<T>,
    1,
    gate_step<Direct<T>>,
    gate_dot<T>,
    gate_gradient<T>,
    gemm<Direct<T>, Acc<T>>,
    gemm<Direct<T>, T>,
    pack_transposed_directly<T>,
    pack_rows_directly<T>,
    transpose_rows<T>,
    row_sums<T>,
    hidden<T>,
    nullptr,
    nullptr,
    few_rows_of<T>(),
};

// 12 independent chains hide the latency of 4 cycles at up to 3 per cycle. volatile keeps the
// compiler from running fewer.
template <class T>
double run_multiply_adds(int64_t rounds) {
  constexpr int chains = 12;
  constexpr double terms = kLanes<Acc<T>> * kPair<T>;
  const volatile Acc<T> scale_value = Acc<T>(0.999), start_value = Acc<T>(1e-3);
  const Vec<T> scale = Vec<T>{} + Acc<T>(scale_value), start = Vec<T>{} + Acc<T>(start_value);
  Vec<T> acc[chains];
  for (int i = 0; i < chains; ++i) acc[i] = start;
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) {
      acc[i] = multiply_add_of(static_cast<const T*>(nullptr), acc[i], scale, start);
    }
  }
  Vec<T> sum{};
  for (int i = 0; i < chains; ++i) sum += acc[i];
  [[maybe_unused]] volatile Acc<T> sink = sum[0];
  return double(rounds) * chains * terms;
}
