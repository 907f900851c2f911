// float32 tensors whose products are computed of bfloat16: panels hold pairs of bfloat16, and rows
// are rounded on their way into a tile. Included after kernels_pack.h where there is a bfloat16 dot
// product.

// The two halves of a pair of vectors of 16 floats, in order.
FUSED_LSTM_INLINE VecF rounded_pair(VecF first, VecF second) {
  return (VecF)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// Which bfloat16 stands for a float: the nearest, or the first or second of two whose sum it is.
enum class Part { whole, high, low };

// What rounds to infinity is split into a finite number of its sign and infinity. A product of sums
// without that of the low parts is then what the product is: the infinite part meets the other
// factor's high part, which has that one's sign, and is zero only where all of it is.
FUSED_LSTM_INLINE VecF high_part(VecF x) {
  constexpr float rounds_to_infinity = 0x1.ffp127f;
  const VecI32 infinite = (x >= rounds_to_infinity) | (x <= -rounds_to_infinity);
  constexpr int32_t above_two = 0x40000000;  // this bit of an exponent; 1 is infinity without it
  return (VecF)((VecI32)x & ~(infinite & above_two));
}

template <Part kPart>
FUSED_LSTM_INLINE VecF part_of_float(VecF x) {
  if constexpr (kPart == Part::whole) return x;
  if constexpr (kPart == Part::high) return high_part(x);
  return x - widen(narrow(high_part(x)));
}

// n floats from p on as bfloat16; the rest is zero.
template <Part kPart>
FUSED_LSTM_INLINE VecF rounded_entries(const float* p, int64_t n) {
  constexpr int lanes = kLanes<float>;
  if (n >= 2 * lanes) {
    return rounded_pair(part_of_float<kPart>(load(p)), part_of_float<kPart>(load(p + lanes)));
  }
  const int first = n < lanes ? int(n) : lanes;
  const VecF second = n > lanes ? load_some(p + lanes, int(n) - lanes) : VecF{};
  return rounded_pair(part_of_float<kPart>(load(p, first)), part_of_float<kPart>(second));
}

// Two rows of n floats as one row of pairs.
template <Part kPart>
FUSED_LSTM_INLINE VecF rounded_columns(const float* row, const float* next, int64_t col, int n) {
  const VecF first = row == nullptr ? VecF{} : load(row + col, n);
  const VecF second = next == nullptr ? VecF{} : load(next + col, n);
  const VecF both = rounded_pair(part_of_float<kPart>(first), part_of_float<kPart>(second));
  VecU16 half[2];
  __builtin_memcpy(half, &both, sizeof(both));
  return (VecF)(((VecU32)widen(half[0]) >> 16) | (VecU32)widen(half[1]));
}

// One of the bfloat16 parts of float32.
template <Part kPart>
struct PartOf {
  using Element = float;
  using Operand = bfloat16;

  static FUSED_LSTM_INLINE VecF entries(const float* p, int64_t n) {
    return rounded_entries<kPart>(p, n);
  }
  static FUSED_LSTM_INLINE VecF columns(const float* row, const float* next, int64_t col, int n) {
    return rounded_columns<kPart>(row, next, col, n);
  }
};

struct Rounded : PartOf<Part::whole> {
  // A chain's length of every row is rounded at a time: 512 bytes a row, and 1 instruction in 16.
  template <int M, int N>
  static FUSED_LSTM_INLINE void multiply_add(VecF (&sum)[M][N], int64_t k, const float* (&a)[M],
                                             const float* panel, const float* next, int tile) {
    constexpr int64_t chain = kChain * kPair<bfloat16>;
    constexpr int width = kLanes<float> * kPair<bfloat16>;
    const auto* pairs = reinterpret_cast<const bfloat16*>(panel);
    const char* ahead = ahead_of_tile(reinterpret_cast<const bfloat16*>(next), pairs, k, tile);
    for (int64_t k0 = 0; k0 < k; k0 += chain) {
      const int64_t n = k - k0 < chain ? k - k0 : chain;
      bfloat16 rows[M][chain];
      const bfloat16* row[M];
      for (int m = 0; m < M; ++m) {
        for (int64_t i = 0; i < n; i += width) {
          store_raw(rows[m] + i, entries(a[m] + k0 + i, n - i));
        }
        row[m] = rows[m];
      }
      accumulate<bfloat16, M, N>(sum, n, row, pairs + k0 * 4 * kLanes<float>,
                                 ahead + k0 / kPair<bfloat16> * kLine);
    }
  }
};

// Elements of one part of a panel.
FUSED_LSTM_INLINE int64_t part_size(int64_t k) { return 4 * kLanes<float> * ((k + 1) / 2 * 2); }

template <int kParts>
constexpr Part kFirstPart = kParts == 1 ? Part::whole : Part::high;

// Panels of all parts, one after the other.
template <int kParts>
void pack_transposed_parts(const PackTransposed<float>& s) {
  auto* panel = reinterpret_cast<bfloat16*>(s.panel);
  pack_transposed<PartOf<kFirstPart<kParts>>>(s, panel);
  if constexpr (kParts > 1) pack_transposed<PartOf<Part::low>>(s, panel + part_size(s.k));
}

template <int kParts>
void pack_rows_parts(const PackRows<float>& s) {
  auto* panel = reinterpret_cast<bfloat16*>(s.panel);
  pack_rows<PartOf<kFirstPart<kParts>>>(s, panel);
  if constexpr (kParts > 1) pack_rows<PartOf<Part::low>>(s, panel + part_size(s.k));
}

// The kernels of float32 with such panels, but for those that multiply them.
template <int kParts>
constexpr Kernels<float> panels_of_parts() {
  Kernels<float> kernels = kTable<float>;
  kernels.few_rows = nullptr;  // it multiplies what lies there, unrounded
  kernels.pair = kPair<bfloat16>;
  kernels.parts = kParts;
  kernels.pack_transposed = pack_transposed_parts<kParts>;
  kernels.pack_rows = pack_rows_parts<kParts>;
  return kernels;
}

constexpr Kernels<float> rounded_table() {
  Kernels<float> kernels = panels_of_parts<1>();
  kernels.gate_step = gate_step<Rounded>;
  kernels.gemm = kernels.gemm_out = gemm<Rounded, float>;
  return kernels;
}
constexpr Kernels<float> kRoundedTable = rounded_table();
