// AVX-512 with the bfloat16 dot product, the matrix unit, and float32 multiplied as bfloat16; the
// other types are those of plain AVX-512.
#include "brgemm.h"
#include "isa_tables.h"

#if defined(FUSED_LSTM_X86)
#include <immintrin.h>

#include <cstdint>
#include <type_traits>

#define FUSED_LSTM_VECTOR_BYTES 64
#define FUSED_LSTM_TILE_ROWS 6
#define FUSED_LSTM_BFLOAT16_DOT

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl,avx512bf16")
#endif

#include "../cell.h"

namespace fused_lstm::cpu {
namespace avx512_bf16 {
namespace {
#include "kernels_isa.h"
// clang-format off
#include "kernels_rounded.h"
#include "kernels_matrix.h"
// clang-format on
}  // namespace
}  // namespace avx512_bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const PairTables kPairTables = {
    &avx512_bf16::kTable<bfloat16>,     &avx512_bf16::kRoundedTable,
    &avx512_bf16::kMatrixTable,         &avx512_bf16::kMatrixPartsTable<1>,
    &avx512_bf16::kMatrixPartsTable<2>,
};
double (*const kAvx512Bf16MultiplyAdds)(int64_t) = avx512_bf16::run_multiply_adds<bfloat16>;

}  // namespace fused_lstm::cpu
#endif
