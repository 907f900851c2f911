// Products by the processor's matrix unit: blocks of rows against a panel, into a buffer that stays
// in L1, where the gates are finished. Included after kernels_rounded.h.
//
// A block of 32 rows with K = 512 is, on AMX, 2 x 4 x 16 tile products of 16 cycles: 2048 cycles,
// in which 64 KiB of weights come from L2 (32 bytes a cycle), and 8 KiB of sums are written and
// read again (2 x 128 vectors). Rows that cannot be read where they lie cost 512 vectors to copy,
// and to round those of float32 as many again to load.

constexpr int kBlockRows = 32;    // two tiles of A: each tile of weights loaded serves both
constexpr int kBlockDepth = 256;  // 32 x 256 bfloat16 are 16 KiB: they and the sums fit L1
constexpr int kRowsMultiple = 4;  // a block has rows of zeros to that: few shapes to generate

// bfloat16 as it is, with one part, or float32 as the sum of kParts bfloat16.
template <class T, int kParts>
struct Blocks {
  using Element = T;
  static constexpr int parts = kParts;

  // n elements of a row, and zeros to the next multiple of `lanes` pairs.
  template <Part kPart>
  static FUSED_LSTM_INLINE void copy(const T* row, int64_t n, bfloat16* to) {
    constexpr int width = kLanes<float> * kPair<bfloat16>;
    for (int64_t i = 0; i < n; i += width) {
      if constexpr (kPair<T> == 2) {
        store_raw(to + i, load_entries(row + i, n - i));
      } else {
        store_raw(to + i, rounded_entries<kPart>(row + i, n - i));
      }
    }
  }

  template <Part kPart>
  static void copy_rows(const Rows<const T>& a, int64_t row, int64_t rows, int64_t k0, int64_t n,
                        bfloat16* block) {
    for (int64_t r = 0; r < rows; ++r) {
      copy<kPart>(a.at(row + r) + k0, n, block + r * kBlockDepth);
    }
  }
};

// The stride of rows that the micro-kernel can read where they lie; 0 of others.
FUSED_LSTM_INLINE int64_t stride_in_place(const Rows<const float>&, int64_t, int64_t, int64_t) {
  return 0;
}
FUSED_LSTM_INLINE int64_t stride_in_place(const Rows<const bfloat16>& a, int64_t row, int64_t rows,
                                          int64_t k) {
  if (rows % kRowsMultiple != 0 || k % 2 != 0) return 0;
  const auto distance = [&](int64_t r) { return (int64_t)a.at(row + r) - (int64_t)a.at(row); };
  const int64_t stride = distance(1);
  for (int64_t r = 2; r < rows && a.list != nullptr; ++r) {
    if (distance(r) != r * stride) return 0;
  }
  return stride >= k * int64_t(sizeof(bfloat16)) ? stride / int64_t(sizeof(bfloat16)) : 0;
}

// c[rows, 64] = a[row.., k] * panel. How K is cut depends on nothing else, so that every row's
// sum has one order.
template <class B>
void multiply_block(const Rows<const typename B::Element>& a, int64_t row, int64_t rows, int64_t k,
                    const typename B::Element* panel, float* c) {
  const auto* high = reinterpret_cast<const bfloat16*>(panel);
  const auto* low = high + part_size(k);
  const int64_t stride = stride_in_place(a, row, rows, k);
  const int64_t padded_rows = (rows + kRowsMultiple - 1) / kRowsMultiple * kRowsMultiple;
  alignas(64) bfloat16 block[kBlockRows * kBlockDepth];
  for (int64_t k0 = 0; k0 < k; k0 += kBlockDepth) {
    const int64_t n = k - k0 < kBlockDepth ? k - k0 : kBlockDepth, even = (n + 1) / 2 * 2;
    const int64_t first = k0 * kMatrixColumns;  // weight
    if (stride > 0) {
      const auto* lying = reinterpret_cast<const bfloat16*>(a.at(row)) + k0;
      brgemm(rows, n, lying, stride, high + first, c, k0 > 0);
      continue;
    }
    for (int64_t r = rows; r < padded_rows; ++r) {
      for (int64_t i = 0; i < even; ++i) block[r * kBlockDepth + i] = bfloat16{0};
    }
    const auto product = [&](const bfloat16* weights, bool add) __attribute__((always_inline)) {
      brgemm(padded_rows, even, block, kBlockDepth, weights + first, c, add);
    };
    B::template copy_rows<kFirstPart<B::parts>>(a, row, rows, k0, n, block);
    product(high, k0 > 0);
    if constexpr (B::parts == 2) {
      product(low, true);
      B::template copy_rows<Part::low>(a, row, rows, k0, n, block);
      product(high, true);
    }
  }
}

template <int R>
FUSED_LSTM_INLINE void add_sums(VecF (&pre)[R][4], const float* sums) {
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 4; ++v) pre[r][v] += load(sums + (r * 4 + v) * kLanes<float>);
  }
}

template <class B>
void matrix_gate_step(const GateStep<typename B::Element>& s) {
  using T = typename B::Element;
  constexpr int lanes = kLanes<float>, width = 4 * lanes;
  alignas(64) float x_sums[kBlockRows * width], h_sums[kBlockRows * width];
  for (int64_t first = 0; first < s.rows; first += kBlockRows) {
    const int64_t rows = s.rows - first < kBlockRows ? s.rows - first : kBlockRows;
    if (s.x_size > 0) multiply_block<B>(s.x, first, rows, s.x_size, s.w_x, x_sums);
    if (s.h_size > 0) multiply_block<B>(s.h_prev, first, rows, s.h_size, s.w_h, h_sums);
    // The input's part first, as where it is batched over steps.
    for_row_tiles<kTogether>(
        rows, [&](int, int64_t row, auto count) __attribute__((always_inline)) {
          constexpr int R = decltype(count)::value;
          VecF pre[R][4];
          start<T, R, 4>(pre, s.init + (first + row) * s.init_stride, s.init_stride);
          if (s.x_size > 0) add_sums<R>(pre, x_sums + row * width);
          if (s.h_size > 0) add_sums<R>(pre, h_sums + row * width);
          finish_rows<T, R>(s, first + row, pre);
        });
  }
}

template <class B, class Out>
void matrix_gemm(const PanelGemm<typename B::Element, Out>& g) {
  constexpr int lanes = kLanes<float>;
  alignas(64) float sums[kBlockRows * kMatrixColumns];
  for (int64_t first = 0; first < g.rows; first += kBlockRows) {
    const int64_t rows = g.rows - first < kBlockRows ? g.rows - first : kBlockRows;
    multiply_block<B>(g.a, first, rows, g.k, g.panel, sums);
    for (int64_t r = 0; r < rows; ++r) {
      Out* c = g.c.at(first + r) + g.col;
      for (int v = 0; v * lanes < g.cols; ++v) {
        const int n = g.cols - v * lanes < lanes ? g.cols - v * lanes : lanes;
        VecF sum = load(sums + (r * 4 + v) * lanes);
        if (g.init != nullptr) sum += load(g.init + (first + r) * g.init_stride + v * lanes, n);
        store(c + v * lanes, sum, n);
      }
    }
  }
}

template <int kParts, class T>
constexpr Kernels<T> by_matrix_unit(Kernels<T> kernels) {
  using B = Blocks<T, kParts>;
  kernels.tile_rows = kBlockRows;
  kernels.gate_step = matrix_gate_step<B>;
  kernels.gemm = matrix_gemm<B, float>;
  kernels.gemm_out = matrix_gemm<B, T>;
  kernels.release = brgemm_release;
  return kernels;
}

constexpr Kernels<bfloat16> kMatrixTable = by_matrix_unit<1>(kTable<bfloat16>);
template <int kParts>
constexpr Kernels<float> kMatrixPartsTable = by_matrix_unit<kParts>(panels_of_parts<kParts>());
