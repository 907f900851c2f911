// The kernels of one instruction set, in a namespace of their own so that no inline of one set can
// stand in for another's at link time. The including file has included the standard headers before
// it put its target in force, and defines FUSED_LSTM_VECTOR_BYTES and FUSED_LSTM_TILE_ROWS.

// Each builds on the ones before it.
// clang-format off
#include "vec.h"
#include "kernels_cell.h"
#include "kernels_gemm.h"
#include "kernels_few.h"
#include "kernels_gate.h"
#include "kernels_pack.h"
// clang-format on
