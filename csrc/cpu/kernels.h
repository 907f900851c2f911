// What the CPU's inner loops offer, as one table of plain functions per element type and
// instruction set. Kernels compute; which of them runs, on which rows and units, is decided above.
//
// A panel holds the weights of 4 x `lanes` output columns contiguously:
//   [K / pair][4][lanes][pair]     pair = 2 for bfloat16, whose products add two terms, else 1
// For gates the four groups are i, f, g, o of the same `lanes` hidden units; for other products
// they are consecutive columns. Rows of K not divisible by the pair are padded with zero.
//
// All strides are in elements.
#pragma once

#include <cstdint>

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

// One step of one panel of hidden units for `rows` rows: pre-activations, gates, c and h.
template <class T>
struct GateStep {
  int64_t rows;
  int units;           // live units in this panel, 1..lanes
  int64_t hidden;      // distance of the four gates of one unit in `gates`
  const Acc<T>* init;  // [rows, 4 * lanes] pre-activations so far; one row where the stride is 0
  int64_t init_stride;
  const T* x;  // [rows, x_size], x_size 0 where init holds its product already
  int64_t x_stride, x_size;
  const T* w_x;     // panel
  const T* h_prev;  // [rows, h_size], h_size 0 for a zero state
  int64_t h_stride, h_size;
  const T* w_h;          // panel
  const Acc<T>* c_prev;  // [rows, units], null for a zero state
  int64_t c_prev_stride;
  Acc<T>* c_next;  // may be c_prev
  int64_t c_next_stride;
  T* h_next;
  int64_t h_next_stride;
  T* gates;  // [rows, 4, hidden] activated, or null
  int64_t gates_stride;
};

// The same for weights that lie as the parameters do, [4H, K] row by row: w_x and w_h point at the
// row of this panel's first unit, and bias holds the two parameters (null for none) likewise.
template <class T>
struct GateDot {
  GateStep<T> step;  // init is not read
  int64_t w_x_stride, w_h_stride;
  const T* b_ih;
  const T* b_hh;
};

// Gradients of the pre-activations of one step for `units` hidden units.
template <class T>
struct GateGradient {
  int64_t rows;
  int units;
  int64_t hidden;
  const T* gates;  // [rows, 4, hidden]
  int64_t gates_stride;
  const Acc<T>* c;
  int64_t c_stride;
  const Acc<T>* c_prev;  // null for zero
  int64_t c_prev_stride;
  const T* dy;  // gradient of this step's output, null for none
  int64_t dy_stride;
  const Acc<T>* dh;  // gradient that later steps left for h, null for none
  int64_t dh_stride;
  Acc<T>* dc;  // gradient of c, in and out
  int64_t dc_stride;
  T* dgates;  // [rows, 4, hidden]
  int64_t dgates_stride;
};

// c[rows, cols] = init + a[rows, k] * panel. init null: zero; init_stride 0: one row for all.
template <class T, class Out>
struct PanelGemm {
  int64_t rows, k;
  const T* a;
  int64_t a_stride;
  const T* panel;
  const Acc<T>* init;
  int64_t init_stride;
  Out* c;
  int64_t c_stride;
  int cols;  // 1..4 * lanes
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
  const T* const* rows;
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
};

enum class Isa { baseline, avx2, avx512, avx512_bf16 };

const char* isa_name(Isa isa);
// The best instruction set that this processor, the build and set_isa() allow.
Isa current_isa();
// Caps current_isa(); returns false for an unknown name.
bool set_isa(const char* name);

// The table for T under current_isa(). bfloat16 has one only where native_bfloat16().
template <class T>
const Kernels<T>& kernels();
bool native_bfloat16();

// Multiply-adds per second of one core's float32 units, by running them: 2 x this is the peak.
double measure_fma_rate();

}  // namespace fused_lstm::cpu
