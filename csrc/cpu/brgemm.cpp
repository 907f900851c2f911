#include "brgemm.h"

#include <ATen/native/CPUBlas.h>

namespace fused_lstm::cpu {

namespace blas = at::native::cpublas;

static_assert(sizeof(bfloat16) == sizeof(at::BFloat16), "the same bits under two names");

bool has_matrix_unit() {
  static const bool found = blas::could_pack(at::kBFloat16) && has_brgemm();
  return found;
}

bool has_brgemm() {
  static const bool runs = [] {
    const bfloat16 a[2] = {}, panel[2 * kMatrixColumns] = {};
    float c[kMatrixColumns];
    try {
      brgemm(1, 2, a, 2, panel, c, false);
      brgemm_release();
      return true;
    } catch (const c10::Error&) {  // this build of torch, or this processor, has none
      return false;
    }
  }();
  return runs;
}

void brgemm(int64_t rows, int64_t k, const bfloat16* a, int64_t a_stride, const bfloat16* panel,
            float* c, bool add) {
  blas::brgemm(rows, kMatrixColumns, k, a_stride, kMatrixColumns, kMatrixColumns, add,
               reinterpret_cast<const at::BFloat16*>(a),
               reinterpret_cast<const at::BFloat16*>(panel), c, /*is_vnni=*/true);
}

void brgemm_release() { blas::brgemm_release(/*is_vnni=*/true); }

}  // namespace fused_lstm::cpu
