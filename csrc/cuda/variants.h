// Which instances of the persistent kernels are compiled. The planner picks one by its index, the
// launchers turn the index into a kernel.
//
// A thread has 65536 / max_threads registers. A k tile of weights kept in registers takes 8 of them
// per unit tile on tensor cores; the sums take 16 per unit tile.
#pragma once

namespace fused_lstm {
namespace cuda {

// Plan A: one warp per unit tile.
struct BlockVariant {
  int max_threads;
  int reg_tiles;
};
// Up to 64, 128 and 160 hidden units: the fewer warps, the more registers for weights.
constexpr BlockVariant kBlockTensorCore[] = {{256, 4}, {512, 2}, {640, 1}};
// A k tile would take 64 registers; shared memory ends at 112 (float32) and 80 (float64) units.
constexpr BlockVariant kBlockFp32[] = {{512, 0}};
constexpr BlockVariant kBlockFp64[] = {{320, 0}};

// Plans B and C: 8 or 16 warps share the k tiles, each for all unit tiles of the block. The more
// unit tiles, the fewer blocks read each h, and the longer each computes.
struct SlicedVariant {
  int threads;
  int unit_tiles;
  int reg_tiles;
};
// 8 blocks of 2 or 4 unit tiles: up to 128 and 256 hidden units.
constexpr SlicedVariant kClusterTensorCore[] = {{256, 2, 2}, {512, 4, 0}};
constexpr SlicedVariant kClusterFp32[] = {{256, 1, 0}, {256, 2, 0}};
constexpr SlicedVariant kClusterFp64[] = {{256, 1, 0}, {256, 2, 0}};
// 64 registers of weights, or 32 beside the 64 that hold the sums of 4 unit tiles.
constexpr SlicedVariant kGridTensorCore[] = {{256, 1, 8}, {256, 2, 4}, {256, 4, 1}};
constexpr SlicedVariant kGridFp32[] = {{256, 1, 0}, {256, 2, 0}};
constexpr SlicedVariant kGridFp64[] = {{256, 1, 0}};

}  // namespace cuda
}  // namespace fused_lstm
