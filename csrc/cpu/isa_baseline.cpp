// What every processor of the build's architecture has: SSE2 or NEON.
#include <cstdint>

#include "../cell.h"
#include "isa_tables.h"

#define FUSED_LSTM_VECTOR_BYTES 16
#if defined(FUSED_LSTM_X86)
#define FUSED_LSTM_TILE_ROWS 3
#else
#define FUSED_LSTM_TILE_ROWS 6
#endif

namespace fused_lstm::cpu {
namespace baseline {
namespace {
#include "kernels_isa.h"
}  // namespace
}  // namespace baseline

const IsaTables kBaselineTables = {&baseline::kTable<float>, &baseline::kTable<double>,
                                   baseline::run_multiply_adds<float>,
                                   baseline::run_multiply_adds<double>};

}  // namespace fused_lstm::cpu
