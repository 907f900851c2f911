// Which instances of the persistent kernels are compiled. The planner picks one by its index, the
// launchers turn the index into a kernel.
//
// A thread has 65536 / max_threads registers. A k tile of weights kept in registers takes 8 of them
// per unit tile on tensor cores; the sums take 16 per unit tile.
#pragma once

#include <cstddef>

namespace fused_lstm {
namespace cuda {

// Plan A: one warp per unit tile.
struct BlockVariant {
  int max_threads;
  int reg_tiles;
};
// 4 k tiles x 8 registers of weights in 255 or 128 registers; none where a thread has 64.
constexpr BlockVariant kBlockTensorCore[] = {{256, 4}, {512, 4}, {1024, 0}};
// A k tile takes 64 registers here; and shared memory ends (H = 112 in float32) before 512 threads.
constexpr BlockVariant kBlockFma[] = {{512, 0}};

// Plans B and C: every warp sums for all of the block's unit tiles.
struct SlicedVariant {
  int max_threads;
  int unit_tiles;
  int reg_tiles;
};
constexpr SlicedVariant kSlicedTensorCore[] = {
    {256, 1, 0}, {256, 1, 8}, {256, 2, 0}, {256, 2, 4}, {512, 4, 0}};
constexpr SlicedVariant kSlicedFma[] = {{256, 1, 0}, {256, 2, 0}};

}  // namespace cuda
}  // namespace fused_lstm
