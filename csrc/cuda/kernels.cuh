// Which compiled kernel a plan means: its variant is an index into the tables of variants.h.
#pragma once

#include <cstddef>
#include <iterator>
#include <stdexcept>
#include <type_traits>

#include "block.cuh"
#include "cuda/plan.h"
#include "cuda/variants.h"
#include "gate_step.cuh"
#include "sliced_backward.cuh"
#include "sliced_forward.cuh"

namespace fused_lstm {
namespace cuda {

template <class Math>
struct Variants {
  static constexpr const auto& block = kBlockTensorCore;
  static constexpr const auto& cluster_forward = kClusterForwardTensorCore;
  static constexpr const auto& cluster_backward = kClusterBackwardTensorCore;
  static constexpr const auto& grid_forward = kGridTensorCore;
  static constexpr const auto& grid_backward = kGridTensorCore;
};
template <>
struct Variants<Fp32> {
  static constexpr const auto& block = kBlockFp32;
  static constexpr const auto& cluster_forward = kClusterFp32;
  static constexpr const auto& cluster_backward = kClusterFp32;
  static constexpr const auto& grid_forward = kGridFp32;
  static constexpr const auto& grid_backward = kGridFp32;
};
template <>
struct Variants<Fp64> {
  static constexpr const auto& block = kBlockFp64;
  static constexpr const auto& cluster_forward = kClusterFp64;
  static constexpr const auto& cluster_backward = kClusterFp64;
  static constexpr const auto& grid_forward = kGridFp64;
  static constexpr const auto& grid_backward = kGridFp64;
};

// The shape of variant number i of a table.
template <const auto& kTable, size_t i>
using ShapeOf =
    SlicedShape<kTable[i].unit_tiles, kTable[i].unit_parts, kTable[i].reg_tiles, kTable[i].threads>;

using ForwardKernel = void (*)(ForwardParams);
using BackwardKernel = void (*)(BackwardParams);

// kernel(i) as a compile-time constant, for i = variant.
template <size_t n, size_t i = 0, class Kernel>
auto pick(int variant, Kernel kernel) {
  const auto here = std::integral_constant<size_t, i>();
  if constexpr (i + 1 < n) {
    return variant == static_cast<int>(i) ? kernel(here) : pick<n, i + 1>(variant, kernel);
  } else {
    if (variant != static_cast<int>(i)) {
      throw std::runtime_error("fused_lstm: the plan names a kernel that is not compiled");
    }
    return kernel(here);
  }
}

template <class Math, bool kSave>
ForwardKernel forward_kernel(const Loop& loop) {
  using V = Variants<Math>;
  if (loop.algorithm == Algorithm::block) {
    return pick<std::size(V::block)>(loop.variant, [](auto i) -> ForwardKernel {
      constexpr BlockVariant v = V::block[decltype(i)::value];
      return &block_forward<Math, v.reg_tiles, v.max_threads, kSave>;
    });
  }
  if (loop.algorithm == Algorithm::cluster) {
    return pick<std::size(V::cluster_forward)>(loop.variant, [](auto i) -> ForwardKernel {
      using Shape = ShapeOf<V::cluster_forward, decltype(i)::value>;
      return &sliced_forward<Math, ClusterExchange, Shape, kSave>;
    });
  }
  return pick<std::size(V::grid_forward)>(loop.variant, [](auto i) -> ForwardKernel {
    using Shape = ShapeOf<V::grid_forward, decltype(i)::value>;
    return &sliced_forward<Math, GridExchange, Shape, kSave>;
  });
}

template <class Math>
BackwardKernel backward_kernel(const Loop& loop) {
  using V = Variants<Math>;
  if (loop.algorithm == Algorithm::block) {
    return pick<std::size(V::block)>(loop.variant, [](auto i) -> BackwardKernel {
      constexpr BlockVariant v = V::block[decltype(i)::value];
      return &block_backward<Math, v.reg_tiles, v.max_threads>;
    });
  }
  if (loop.algorithm == Algorithm::cluster) {
    return pick<std::size(V::cluster_backward)>(loop.variant, [](auto i) -> BackwardKernel {
      using Shape = ShapeOf<V::cluster_backward, decltype(i)::value>;
      return &sliced_backward<Math, ClusterExchange, Shape>;
    });
  }
  return pick<std::size(V::grid_backward)>(loop.variant, [](auto i) -> BackwardKernel {
    using Shape = ShapeOf<V::grid_backward, decltype(i)::value>;
    return &sliced_backward<Math, GridExchange, Shape>;
  });
}

}  // namespace cuda
}  // namespace fused_lstm
