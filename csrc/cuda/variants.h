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
// A k tile would take 64 registers. Shared memory ends at 112 units of float32; of float64
// registers end at 64, and shared memory forward only at 80.
constexpr BlockVariant kBlockFp32[] = {{512, 0}};
constexpr BlockVariant kBlockFp64[] = {{256, 0}};

// Plans B and C: 8 warps share the k tiles of the block's unit tiles. The more unit tiles, the
// fewer blocks read each h, and the longer each computes. Where unit_parts > 1 the warps are that
// many parts, each with the unit tiles of its own: it then reads the whole operand once more, and
// there are as many times fewer partial sums. The operand of plan B lies in shared memory, and
// forward is small beside the sums of four gates: of 4 unit tiles and H = 256 in bfloat16, 4 parts
// take 512 wavefronts of 128 bytes a row tile, 1 part 1,088. Backward 4 parts would take 1,088, 1
// part 512.
struct SlicedVariant {
  int threads;
  int unit_tiles;
  int unit_parts;
  int reg_tiles;  // k tiles of a warp in registers
};
// 8 blocks of 2 or 4 unit tiles: up to 128 and 256 hidden units, all weights of 16 bits in
// registers.
constexpr SlicedVariant kClusterForwardTensorCore[] = {{256, 2, 2, 4}, {256, 4, 4, 8}};
constexpr SlicedVariant kClusterBackwardTensorCore[] = {{256, 2, 1, 2}, {256, 4, 1, 2}};
constexpr SlicedVariant kClusterFp32[] = {{256, 1, 1, 0}, {256, 2, 1, 0}};
constexpr SlicedVariant kClusterFp64[] = {{256, 1, 1, 0}, {256, 2, 1, 0}};
// 64 registers of weights: k tiles of 8 registers per unit tile.
constexpr SlicedVariant kGridTensorCore[] = {{256, 1, 1, 8}, {256, 2, 1, 4}, {256, 4, 1, 2}};
constexpr SlicedVariant kGridFp32[] = {{256, 1, 1, 0}, {256, 2, 1, 0}};
constexpr SlicedVariant kGridFp64[] = {{256, 1, 1, 0}};

}  // namespace cuda
}  // namespace fused_lstm
