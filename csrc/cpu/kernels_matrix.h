// Products by the processor's matrix unit: blocks of rows against a panel, into a buffer that stays
// in L1, where the gates are finished. Included after kernels_rounded.h.
//
// What AMX takes, by count: no processor with it has measured this code. A block of 32 rows with
// K = 512 is 2 x 4 x 16 tile products of 16 cycles: 2048 cycles, in which 64 KiB of weights come
// from L2 (32 bytes a cycle), and 8 KiB of sums are written and read again (2 x 128 vectors).
// Several panels in one call would save none of it: eight tiles hold the sums of 32 columns, so
// that A is read again for every 32 columns whichever way they are packed.
//
// Rows of float32 take 4 vector instructions for 32 numbers to round, and 48 to split: 2,000 and
// 25,000 for such a block, against 2048 and 6144 cycles of products. They are converted once for
// all panels, which are 32 for 512 units: 128 KiB are read and as much is written in a step of 64
// rows, where each panel would read them again.
//
// A layer of 64 rows, 50 steps, 512 units and as many inputs on two cores, in inference:
//   products     13.4 GFLOP, at the 1,960 to 4,140 GFLOP/s of the micro-kernel    3.2 to 6.8 ms
//   cells        102,400 vectors of 81 instructions, 2 a cycle at 3 GHz                   0.7 ms
//   weights      W_hh, 1 MiB for each core and step, stays in L2; W_ih comes once a chunk
// together 4 to 8 ms in bfloat16; "tf32" has three times the products and 0.8 ms of splitting, 11
// to 22 ms. Training has three times the products, and 76 instructions more for each cell.

constexpr int kBlockRows = 32;    // two tiles of A: each tile of weights loaded serves both
constexpr int kBlockDepth = 256;  // 32 x 256 bfloat16 are 16 KiB: they and the sums fit L1

// The stride of rows that the micro-kernel can read where they lie; 0 of others.
FUSED_LSTM_INLINE int64_t stride_in_place(const Rows<const bfloat16>& a, int64_t row, int64_t rows,
                                          int64_t k) {
  if (rows % kOperandRows != 0 || k % 2 != 0) return 0;
  const auto distance = [&](int64_t r) { return (int64_t)a.at(row + r) - (int64_t)a.at(row); };
  const int64_t stride = distance(1);
  for (int64_t r = 2; r < rows && a.list != nullptr; ++r) {
    if (distance(r) != r * stride) return 0;
  }
  return stride >= k * int64_t(sizeof(bfloat16)) ? stride / int64_t(sizeof(bfloat16)) : 0;
}

FUSED_LSTM_INLINE int64_t operand_rows(int64_t rows) {
  return (rows + kOperandRows - 1) / kOperandRows * kOperandRows;
}

// Calls f(k0, depth) for the parts of K that are multiplied at a time. How K is cut depends on
// nothing else, so that every row's sum has one order.
template <class F>
FUSED_LSTM_INLINE void for_depths(int64_t k, const F& f) {
  for (int64_t k0 = 0; k0 < k; k0 += kBlockDepth) {
    f(k0, k - k0 < kBlockDepth ? k - k0 : kBlockDepth);
  }
}

// bfloat16 is read where it lies, or copied for each panel: with zeros where K is odd or rows are
// missing, or where they lie one here and one there.
struct InBfloat16 {
  using Element = bfloat16;

  // c[rows, 64] = a[row.., k] * panel
  static void multiply(const Rows<const bfloat16>& a, int64_t row, int64_t rows, int64_t k,
                       const bfloat16* panel, float* c) {
    const int64_t stride = stride_in_place(a, row, rows, k), padded = operand_rows(rows);
    alignas(64) bfloat16 block[kBlockRows * kBlockDepth];
    for_depths(k, [&](int64_t k0, int64_t n) {
      const bfloat16* weights = panel + k0 * kMatrixColumns;
      if (stride > 0) return brgemm(rows, n, a.at(row) + k0, stride, weights, c, k0 > 0);
      const int64_t even = (n + 1) / 2 * 2;
      for (int64_t r = 0; r < padded; ++r) {
        copy(r < rows ? a.at(row + r) + k0 : nullptr, n, block + r * kBlockDepth);
      }
      brgemm(padded, even, block, kBlockDepth, weights, c, k0 > 0);
    });
  }

  // n elements, or zeros for none, and zeros to the end of a vector.
  static FUSED_LSTM_INLINE void copy(const bfloat16* row, int64_t n, bfloat16* to) {
    constexpr int width = kLanes<float> * kPair<bfloat16>;
    for (int64_t i = 0; i < n; i += width) {
      store_raw(to + i, row == nullptr ? VecF{} : load_entries(row + i, n - i));
    }
  }
};

// float32 as the sum of kParts bfloat16. A row of them holds its parts one after the other, each of
// whole vectors.
template <int kParts>
struct InParts {
  using Element = float;
  static constexpr int kWidth = kLanes<float> * kPair<bfloat16>;

  static FUSED_LSTM_INLINE int64_t depth(int64_t k) { return (k + kWidth - 1) / kWidth * kWidth; }

  static Rows<const float> convert(const Rows<const float>& rows, int64_t n, int64_t k,
                                   float* out) {
    auto* to = reinterpret_cast<bfloat16*>(out);
    const int64_t stride = kParts * depth(k), padded = operand_rows(n);
    for (int64_t r = 0; r < padded; ++r, to += stride) {
      if (r >= n) {
        for (int64_t i = 0; i < stride; i += kWidth) store_raw(to + i, VecF{});
        continue;
      }
      const float* row = rows.at(r);
      for (int64_t i = 0; i < k; i += kWidth) {
        store_raw(to + i, rounded_entries<kFirstPart<kParts>>(row + i, k - i));
        if constexpr (kParts == 2) {
          store_raw(to + depth(k) + i, rounded_entries<Part::low>(row + i, k - i));
        }
      }
    }
    return {out, stride / int64_t(sizeof(float) / sizeof(bfloat16))};
  }

  // c[rows, 64] = a[row.., k] * panel, of converted rows.
  static void multiply(const Rows<const float>& a, int64_t row, int64_t rows, int64_t k,
                       const float* panel, float* c) {
    const auto* high = reinterpret_cast<const bfloat16*>(a.at(row));
    const auto* weights = reinterpret_cast<const bfloat16*>(panel);
    const int64_t padded = operand_rows(rows), stride = kParts * depth(k);
    for_depths(k, [&](int64_t k0, int64_t n) {
      const int64_t even = (n + 1) / 2 * 2;
      const auto product = [&](const bfloat16* part, const bfloat16* w,
                               bool add) __attribute__((always_inline)) {
        brgemm(padded, even, part + k0, stride, w + k0 * kMatrixColumns, c, add);
      };
      product(high, weights, k0 > 0);
      if constexpr (kParts == 2) {
        product(high, weights + part_size(k), true);
        product(high + depth(k), weights, true);
      }
    });
  }
};

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
    if (s.x_size > 0) B::multiply(s.x, first, rows, s.x_size, s.w_x, x_sums);
    if (s.h_size > 0) B::multiply(s.h_prev, first, rows, s.h_size, s.w_h, h_sums);
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
    B::multiply(g.a, first, rows, g.k, g.panel, sums);
    if (g.k == 0) __builtin_memset(sums, 0, sizeof(sums));  // the empty sum, of no part of K
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

template <class B, class T>
constexpr Kernels<T> by_matrix_unit(Kernels<T> kernels) {
  kernels.tile_rows = kBlockRows;
  kernels.gate_step = matrix_gate_step<B>;
  kernels.gemm = matrix_gemm<B, float>;
  kernels.gemm_out = matrix_gemm<B, T>;
  kernels.release = brgemm_release;
  return kernels;
}

template <int kParts>
constexpr Kernels<float> of_parts() {
  Kernels<float> kernels = by_matrix_unit<InParts<kParts>>(panels_of_parts<kParts>());
  kernels.convert_rows = InParts<kParts>::convert;
  return kernels;
}

constexpr Kernels<bfloat16> kMatrixTable = by_matrix_unit<InBfloat16>(kTable<bfloat16>);
template <int kParts>
constexpr Kernels<float> kMatrixPartsTable = of_parts<kParts>();
