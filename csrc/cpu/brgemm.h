// oneDNN's micro-kernel for bfloat16, as torch exports it: the way to the processor's matrix unit
// (AMX). Not for float16: it is multiplied in float32, for which alone it has kernels, and the
// micro-kernel takes it only where the processor multiplies float16 (AMX-FP16, AVX512-FP16), so
// that kernels of it could not be forced, nor tested, elsewhere. Free of torch's headers, so that
// the kernels of an instruction set can include it.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace fused_lstm::cpu {

constexpr int kMatrixColumns = 64;  // of a panel, and of every product

// Whether the micro-kernel multiplies bfloat16 on this processor, and whether by a matrix unit.
bool has_brgemm();
bool has_matrix_unit();

// c[rows, 64] (+)= a[rows, k] * panel, for even k and rows that do not overlap. c is dense. Leaves
// the matrix unit set up, for the next call, until this thread calls brgemm_release().
void brgemm(int64_t rows, int64_t k, const bfloat16* a, int64_t a_stride, const bfloat16* panel,
            float* c, bool add);
void brgemm_release();

}  // namespace fused_lstm::cpu
