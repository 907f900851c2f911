// Packing and transposing, on entries of one accumulator's width: a float, a double, or a pair of
// bfloat16 that lie one after the other along K. Included after kernels_gate.h inside an
// instruction set's namespace.

template <class T>
FUSED_LSTM_INLINE void store_raw(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <class F>
void pack_transposed(const PackTransposed<typename F::Element>& s, typename F::Operand* panel) {
  using T = typename F::Element;
  constexpr int pair = kPair<typename F::Operand>, lanes = kLanes<Acc<T>>, width = lanes * pair;
  const int64_t entries = (s.k + pair - 1) / pair;
  for (int group = 0; group < 4; ++group) {
    const T* src = s.src + (s.row0 + group * s.group_stride) * s.src_stride;
    for (int64_t e = 0; e < entries; e += lanes) {
      Vec<T> block[lanes];
      for (int l = 0; l < lanes; ++l) {
        block[l] = l < s.live[group] ? F::entries(src + l * s.src_stride + e * pair, s.k - e * pair)
                                     : Vec<T>{};
      }
      transpose<Acc<T>>(block);
      const int64_t n = entries - e < lanes ? entries - e : lanes;
      for (int64_t j = 0; j < n; ++j) {
        store_raw(panel + ((e + j) * 4 + group) * width, block[j]);
      }
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

template <class F>
void pack_rows(const PackRows<typename F::Element>& s, typename F::Operand* out) {
  using T = typename F::Element;
  constexpr int pair = kPair<typename F::Operand>, lanes = kLanes<Acc<T>>, width = lanes * pair;
  for (int64_t k = 0; k < s.k; k += pair) {
    const T* row = s.rows.at(k);
    const T* next = pair == 2 && k + 1 < s.k ? s.rows.at(k + 1) : nullptr;
    if (s.rows.list != nullptr) fetch_ahead(s, k + kRowsAhead, k + kRowsAhead + pair);
    for (int v = 0; v < 4; ++v, out += width) {
      const int live = s.cols - v * lanes;
      const int n = live < lanes ? live : lanes;
      store_raw(out, live <= 0 ? Vec<T>{} : F::columns(row, next, s.col0 + v * lanes, n));
    }
  }
}

template <class T>
void pack_rows_directly(const PackRows<T>& s) {
  pack_rows<Direct<T>>(s, s.panel);
}

template <class T>
void transpose_rows(const Transpose<T>& s) {
  constexpr int lanes = kLanes<Acc<T>>, pair = kPair<T>;
  for (int64_t row = 0; row < s.rows; row += lanes * pair) {
    const int64_t rows = s.rows - row < lanes * pair ? s.rows - row : lanes * pair;
    const int entries = int((rows + pair - 1) / pair);
    for (int64_t col = 0; col < s.cols; col += lanes) {
      const int cols = s.cols - col < lanes ? int(s.cols - col) : lanes;
      Vec<T> block[lanes] = {};
      for (int e = 0; e < entries; ++e) {
        const T* src = s.src + (row + e * pair) * s.src_stride;
        const T* next = pair == 2 && e * pair + 1 < rows ? src + s.src_stride : nullptr;
        block[e] = column_entries(src, next, col, cols);
      }
      transpose<Acc<T>>(block);
      for (int j = 0; j < cols; ++j) {
        T* dst = s.dst + (col + j) * s.dst_stride + row;
        if (entries == lanes) {
          store_raw(dst, block[j]);
        } else {
          T buffer[lanes * pair];
          store_raw(buffer, block[j]);
          for (int i = 0; i < entries * pair; ++i) dst[i] = buffer[i];
        }
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
