// AVX2 and FMA: 16 registers of 8 floats.
#include "isa_tables.h"

#if defined(FUSED_LSTM_X86)
#include <immintrin.h>

#include <cstdint>

#define FUSED_LSTM_VECTOR_BYTES 32
#define FUSED_LSTM_TILE_ROWS 3

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "../cell.h"

namespace fused_lstm::cpu {
namespace avx2 {
namespace {
#include "kernels_isa.h"
}  // namespace
}  // namespace avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const IsaTables kAvx2Tables = {&avx2::kTable<float>, &avx2::kTable<double>,
                               avx2::run_multiply_adds<float>, avx2::run_multiply_adds<double>};

}  // namespace fused_lstm::cpu
#endif
