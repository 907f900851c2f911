// What the CPU's inner loops offer, as one table of plain functions per element type and
// instruction set. Kernels compute; which of them runs, on which rows and units, is decided above.
//
// A panel holds the weights of 4 x `lanes` output columns contiguously:
//   [parts][K / pair][4][lanes][pair]     pair = 2 for operands in bfloat16, else 1
// For gates the four groups are i, f, g, o of the same `lanes` hidden units; for other products
// they are consecutive columns. Rows of K not divisible by the pair are padded with zero. There is
// one part, but for float32 multiplied as the sum of two bfloat16. What a panel holds is the
// kernels' own business: to others it is panel_size(K) elements of T.
//
// All strides are in elements.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../inline.h"
#include "../problem.h"

#if defined(__x86_64__) || defined(_M_X64)
#define FUSED_LSTM_X86 1
#endif

namespace fused_lstm::cpu {

struct bfloat16 {
  uint16_t bits;
};

// What T accumulates in, and carries c in.
template <class T>
struct AccumulateType {
  using type = float;
};
template <>
struct AccumulateType<double> {
  using type = double;
};
template <class T>
using Acc = typename AccumulateType<T>::type;

template <class T>
constexpr int kPair = sizeof(Acc<T>) / sizeof(T);

// Rows that share one pass over weights as they lie in memory (`gate_dot`).
constexpr int kDotRows = 4;

// Converted rows are as many as a multiple of this: few shapes for the micro-kernel to generate.
constexpr int kOperandRows = 4;

// Rows that lie a stride apart, or wherever a list says. P is the element type, const where the
// rows are only read.
template <class P>
struct Rows {
  P* base = nullptr;
  int64_t stride = 0;
  P* const* list = nullptr;

  FUSED_LSTM_INLINE P* at(int64_t row) const {
    return list != nullptr ? list[row] : base + row * stride;
  }
  FUSED_LSTM_INLINE bool given() const { return base != nullptr || list != nullptr; }
};

// One step of one panel of hidden units for `rows` rows: pre-activations, gates, c and h. Row
// addresses are those of unit 0; the panel's first unit is `unit`.
template <class T>
struct GateStep {
  int64_t rows;
  int64_t unit;
  int units;           // live units in this panel, 1..lanes
  int64_t hidden;      // distance of the four gates of one unit in `gates`
  const Acc<T>* init;  // [rows, 4 * lanes] pre-activations so far; one row where the stride is 0
  int64_t init_stride;
  int64_t x_size;  // 0 where init holds its product already
  Rows<const T> x;
  const T* w_x;    // panel
  int64_t h_size;  // 0 where all states are zero
  Rows<const T> h_prev;
  const T* w_h;  // panel
  Rows<const Acc<T>> c_prev;
  Rows<Acc<T>> c_next;  // may be c_prev
  Rows<T> h_next;
  Rows<T> gates;       // [4, hidden] activated, or none
  const T* w_x_ahead;  // the panels that come next, for the cache, or null
  const T* w_h_ahead;
};

// The same for weights that lie as the parameters do, [4H, K] row by row.
template <class T>
struct GateDot {
  GateStep<T> step;  // w_x and w_h are the parameters; init is not read
  const T* b_ih;     // [4H], null for none
  const T* b_hh;
};

// Gradients of the pre-activations of one step for `units` hidden units from `unit` on.
template <class T>
struct GateGradient {
  int64_t rows;
  int64_t unit;
  int units;
  int64_t hidden;
  Rows<const T> gates;  // [4, hidden]
  Rows<const Acc<T>> c;
  Rows<const Acc<T>> c_prev;
  Rows<const T> dy;           // gradient of this step's output, if any
  Rows<const Acc<T>> dh;      // gradient that later steps left for h
  Rows<const Acc<T>> dc_out;  // gradient of c as a result of its own, if any
  Rows<Acc<T>> dc;            // gradient of c, in and out
  Rows<T> dgates;             // [4, hidden]
};

// c[rows, cols] = init + a[rows, k] * panel. init null: zero; init_stride 0: one row for all.
template <class T, class Out>
struct PanelGemm {
  int64_t rows, k;
  Rows<const T> a;
  const T* panel;
  const T* ahead;  // the panel that comes next, for the cache, or null
  const Acc<T>* init;
  int64_t init_stride;
  Rows<Out> c;
  int64_t col;  // of c, the first
  int cols;     // 1..4 * lanes
};

// Columns [col, col + cols) of c[rows, n] = a[rows, k] * b[k, n], b as it lies: for few rows.
template <class T>
struct FewRows {
  int64_t rows, k;
  Rows<const T> a;
  const T* b;
  int64_t b_stride;
  Rows<Acc<T>> c;
  int64_t col, cols;
};

// Panel column (group, lane) is row `row0 + group * group_stride + lane` of src [*, k].
template <class T>
struct PackTransposed {
  const T* src;
  int64_t src_stride, k, row0, group_stride;
  int live[4];  // rows that exist in each group
  T* panel;
};

// Panel column j is column `col0 + j` of the k rows; a null row is zero.
template <class T>
struct PackRows {
  Rows<const T> rows;
  int64_t k, col0;
  int cols;  // columns that exist, 1..4 * lanes
  T* panel;
};

// dst[cols, rows] = src[rows, cols]^T, dst padded with zero to a multiple of the pair.
template <class T>
struct Transpose {
  const T* src;
  int64_t src_stride, rows, cols;
  T* dst;
  int64_t dst_stride;
};

template <class T>
struct Kernels {
  int lanes;      // hidden units in a panel
  int tile_rows;  // rows that one pass over a panel serves
  int pair;       // terms of a product that lie side by side in a panel
  int parts;      // numbers that stand for one weight in it
  void (*gate_step)(const GateStep<T>&);
  void (*gate_dot)(const GateDot<T>&);
  void (*gate_gradient)(const GateGradient<T>&);
  void (*gemm)(const PanelGemm<T, Acc<T>>&);
  void (*gemm_out)(const PanelGemm<T, T>&);
  void (*pack_transposed)(const PackTransposed<T>&);
  void (*pack_rows)(const PackRows<T>&);
  void (*transpose)(const Transpose<T>&);
  // sums[rows] += the sums of a[rows, k] along k
  void (*row_sums)(const T* a, int64_t a_stride, int64_t rows, int64_t k, Acc<T>* sums);
  // c[0..n) = o * tanh(c): the cell's output before a projection
  void (*hidden)(const T* o, const Acc<T>* c, int64_t n, T* h);
  // Null where products read the rows of A as they lie. Else it writes n rows of depth k as they
  // are read, rows_size(n, k) elements, and returns where: once for all panels.
  Rows<const T> (*convert_rows)(const Rows<const T>& rows, int64_t n, int64_t k, T* out) = nullptr;
  // Every thread that multiplied calls it in the end; null where there is nothing to be done.
  void (*release)() = nullptr;
  // Null where a matrix has to be packed.
  void (*few_rows)(const FewRows<T>&) = nullptr;

  // Columns of a panel.
  int64_t width() const { return 4 * lanes; }
  // Elements of a panel of depth k.
  int64_t panel_size(int64_t k) const {
    return width() * ((k + pair - 1) / pair) * parts * int64_t(sizeof(Acc<T>) / sizeof(T));
  }
  Rows<const T> operands(const Rows<const T>& rows, int64_t n, int64_t k, T* out) const {
    return convert_rows == nullptr ? rows : convert_rows(rows, n, k, out);
  }
  int64_t rows_size(int64_t n, int64_t k) const {
    if (convert_rows == nullptr) return 0;
    const int64_t vector = lanes * pair;
    return (n + kOperandRows - 1) / kOperandRows * kOperandRows * ((k + vector - 1) / vector) *
           lanes * parts;
  }
  // Elements of the panels that cover `columns` columns.
  int64_t panels_size(int64_t columns, int64_t k) const {
    return (columns + width() - 1) / width() * panel_size(k);
  }
};

// avx512_amx multiplies bfloat16 by oneDNN's micro-kernel, which uses the processor's matrix unit
// (AMX). Where that is missing it has to be asked for, by name: it is the slower way then.
enum class Isa { baseline, avx2, avx512, avx512_bf16, avx512_amx };

const char* isa_name(Isa isa);
// Those that the build holds.
std::vector<std::string> compiled_isas();
// The best instruction set that this processor, the build and set_isa() allow.
Isa current_isa();
// Caps current_isa(); throws std::invalid_argument for an unknown name.
void set_isa(const std::string& name);

// How the products of float32 tensors are computed. Sums are float32, and so is all the rest.
enum class Products {
  exact,    // of the numbers as they are
  split,    // of each as the sum of two bfloat16, three products for one: what TF32 promises
  rounded,  // of bfloat16
};

// The table for a layer of `batch` rows under current_isa(), where float32 may be multiplied so.
// bfloat16 has one only where native_bfloat16().
template <class T>
const Kernels<T>& kernels_for(int64_t batch, Products allowed = Products::exact);
// What kernels_for() makes of them: `exact` where nothing would be gained.
Products products_for(int64_t batch, Products allowed);
bool native_bfloat16();

// Runs independent multiply-adds of this type, `rounds` times a dozen vectors of them, and returns
// how many those were.
double multiply_adds(DType type, int64_t rounds);

}  // namespace fused_lstm::cpu
