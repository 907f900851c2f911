// Which kernel a plan means, and its launch, for one arithmetic.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>

#include "block.cuh"
#include "cuda/variants.h"
#include "gate_step.cuh"
#include "launcher.cuh"
#include "sliced_backward.cuh"
#include "sliced_forward.cuh"

namespace fused_lstm {
namespace cuda {

// True if the loop was launched, false if the device has no room or no permission for it.
template <class Params>
bool launch_loop(const void* kernel, const Loop& loop, const Params& params, int directions,
                 Stream stream) {
  const auto shared = static_cast<size_t>(loop.shared_bytes);
  check_launch(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared)),
               "a recurrent loop");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(loop.blocks), directions);
  config.blockDim = dim3(loop.threads);
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attribute = {};
  config.attrs = &attribute;
  if (loop.algorithm == Algorithm::cluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(loop.cluster), 1, 1};
    config.numAttrs = 1;
    int clusters = 0;
    check_launch(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "a recurrent loop");
    if (clusters == 0) return false;
  } else if (loop.algorithm == Algorithm::grid) {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.numAttrs = 1;
    int device = 0, multiprocessors = 0, blocks = 0;
    check_launch(cudaGetDevice(&device), "a recurrent loop");
    check_launch(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
                 "a recurrent loop");
    check_launch(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, loop.threads, shared),
        "a recurrent loop");
    if (static_cast<int64_t>(blocks) * multiprocessors < loop.blocks * directions) return false;
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  const cudaError_t error = cudaLaunchKernelExC(&config, kernel, arguments);
  if (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorNotSupported ||
      error == cudaErrorNotPermitted) {
    cudaGetLastError();
    return false;
  }
  check_launch(error, "a recurrent loop");
  return true;
}

// ---- which kernel: the plan's variant is an index into the tables of variants.h ----

template <class Math>
struct Variants {
  static constexpr const auto& block = kBlockTensorCore;
  static constexpr const auto& cluster = kClusterTensorCore;
  static constexpr const auto& grid = kGridTensorCore;
};
template <>
struct Variants<Fp32> {
  static constexpr const auto& block = kBlockFp32;
  static constexpr const auto& cluster = kClusterFp32;
  static constexpr const auto& grid = kGridFp32;
};
template <>
struct Variants<Fp64> {
  static constexpr const auto& block = kBlockFp64;
  static constexpr const auto& cluster = kClusterFp64;
  static constexpr const auto& grid = kGridFp64;
};

template <class Math, bool kSave>
struct BlockForward {
  static constexpr size_t count = std::size(Variants<Math>::block);
  template <size_t i>
  static auto* kernel() {
    constexpr BlockVariant v = Variants<Math>::block[i];
    return &block_forward<Math, v.reg_tiles, v.max_threads, kSave>;
  }
};
template <class Math>
struct BlockBackward {
  static constexpr size_t count = std::size(Variants<Math>::block);
  template <size_t i>
  static auto* kernel() {
    constexpr BlockVariant v = Variants<Math>::block[i];
    return &block_backward<Math, v.reg_tiles, v.max_threads>;
  }
};
template <class Math, bool kSave>
struct ClusterForward {
  static constexpr size_t count = std::size(Variants<Math>::cluster);
  template <size_t i>
  static auto* kernel() {
    constexpr SlicedVariant v = Variants<Math>::cluster[i];
    return &sliced_forward<Math, ClusterExchange, v.unit_tiles, v.reg_tiles, v.max_threads, kSave>;
  }
};
template <class Math>
struct ClusterBackward {
  static constexpr size_t count = std::size(Variants<Math>::cluster);
  template <size_t i>
  static auto* kernel() {
    constexpr SlicedVariant v = Variants<Math>::cluster[i];
    return &sliced_backward<Math, ClusterExchange, v.unit_tiles, v.reg_tiles, v.max_threads>;
  }
};
template <class Math, bool kSave>
struct GridForward {
  static constexpr size_t count = std::size(Variants<Math>::grid);
  template <size_t i>
  static auto* kernel() {
    constexpr SlicedVariant v = Variants<Math>::grid[i];
    return &sliced_forward<Math, GridExchange, v.unit_tiles, v.reg_tiles, v.max_threads, kSave>;
  }
};
template <class Math>
struct GridBackward {
  static constexpr size_t count = std::size(Variants<Math>::grid);
  template <size_t i>
  static auto* kernel() {
    constexpr SlicedVariant v = Variants<Math>::grid[i];
    return &sliced_backward<Math, GridExchange, v.unit_tiles, v.reg_tiles, v.max_threads>;
  }
};

template <class Family, size_t i = 0>
const void* kernel_of(int variant) {
  if constexpr (i < Family::count) {
    if (variant == static_cast<int>(i)) {
      return reinterpret_cast<const void*>(Family::template kernel<i>());
    }
    return kernel_of<Family, i + 1>(variant);
  } else {
    throw std::runtime_error("fused_lstm: the plan names a kernel that is not compiled");
  }
}

template <class Math, bool kSave>
const void* forward_kernel(const Loop& loop) {
  switch (loop.algorithm) {
    case Algorithm::block:
      return kernel_of<BlockForward<Math, kSave>>(loop.variant);
    case Algorithm::cluster:
      return kernel_of<ClusterForward<Math, kSave>>(loop.variant);
    default:
      return kernel_of<GridForward<Math, kSave>>(loop.variant);
  }
}

template <class Math>
const void* backward_kernel(const Loop& loop) {
  switch (loop.algorithm) {
    case Algorithm::block:
      return kernel_of<BlockBackward<Math>>(loop.variant);
    case Algorithm::cluster:
      return kernel_of<ClusterBackward<Math>>(loop.variant);
    default:
      return kernel_of<GridBackward<Math>>(loop.variant);
  }
}

// ---- one arithmetic ----

template <class Params>
dim3 gate_step_grid(const Params& params, int directions) {
  int64_t rows = 0;
  for (int d = 0; d < directions; ++d) rows = std::max(rows, params.direction[d].rows);
  return dim3(static_cast<unsigned>(gate_step_blocks(rows, params.hidden)), directions);
}

template <class Math>
void Launcher<Math>::gates_forward(const GateForwardParams& params, int directions, bool save,
                                   Stream stream) {
  const dim3 grid = gate_step_grid(params, directions);
  const auto s = static_cast<cudaStream_t>(stream);
  if (save) {
    gate_step_forward<Math, true><<<grid, kGateStepThreads, 0, s>>>(params);
  } else {
    gate_step_forward<Math, false><<<grid, kGateStepThreads, 0, s>>>(params);
  }
  check_launch(cudaGetLastError(), "gate_step_forward");
}

template <class Math>
void Launcher<Math>::gates_backward(const GateBackwardParams& params, int directions,
                                    Stream stream) {
  const dim3 grid = gate_step_grid(params, directions);
  gate_step_backward<Math>
      <<<grid, kGateStepThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
  check_launch(cudaGetLastError(), "gate_step_backward");
}

template <class Math>
bool Launcher<Math>::loop_forward(const Loop& loop, const ForwardParams& params, int directions,
                                  bool save, Stream stream) {
  const void* kernel = save ? forward_kernel<Math, true>(loop) : forward_kernel<Math, false>(loop);
  return launch_loop(kernel, loop, params, directions, stream);
}

template <class Math>
bool Launcher<Math>::loop_backward(const Loop& loop, const BackwardParams& params, int directions,
                                   Stream stream) {
  return launch_loop(backward_kernel<Math>(loop), loop, params, directions, stream);
}

}  // namespace cuda
}  // namespace fused_lstm
