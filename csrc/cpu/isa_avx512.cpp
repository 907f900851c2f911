// AVX-512: 32 registers of 16 floats.
#include "isa_tables.h"

#if defined(FUSED_LSTM_X86)
#include <immintrin.h>

#include <cstdint>

#define FUSED_LSTM_VECTOR_BYTES 64
#define FUSED_LSTM_TILE_ROWS 6

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#endif

#include "../cell.h"

namespace fused_lstm::cpu {
namespace avx512 {
namespace {
#include "kernels_isa.h"
}  // namespace
}  // namespace avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const IsaTables kAvx512Tables = {&avx512::kTable<float>, &avx512::kTable<double>,
                                 avx512::run_multiply_adds<float>,
                                 avx512::run_multiply_adds<double>};

}  // namespace fused_lstm::cpu
#endif
