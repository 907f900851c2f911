// Launches the kernels of one arithmetic.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "kernels.cuh"
#include "launcher.cuh"

namespace fused_lstm {
namespace cuda {

// How a loop is launched: as a cluster, cooperatively, or as any kernel.
struct LoopConfig {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attribute = {};

  LoopConfig(const Loop& loop, int directions, Stream stream) {
    config.gridDim = dim3(static_cast<unsigned>(loop.blocks), directions);
    config.blockDim = dim3(loop.threads);
    config.dynamicSmemBytes = static_cast<size_t>(loop.shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    if (loop.algorithm == Algorithm::cluster) {
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim = {static_cast<unsigned>(loop.cluster), 1, 1};
    } else if (loop.algorithm == Algorithm::grid) {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
    } else {
      return;
    }
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
  LoopConfig(const LoopConfig&) = delete;  // config points to attribute
};

// Of this launch, the blocks (plan B: clusters) that the device holds at once. Allows the kernel
// all the shared memory there is: a smaller limit would be in the way of another thread's launch.
inline int64_t count_resident(const void* kernel, const Loop& loop, const LoopConfig& launch,
                              int device) {
  const auto check = [](cudaError_t error) { check_launch(error, "a recurrent loop"); };
  int most_shared = 0, multiprocessors = 0, count = 0;
  check(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared));
  if (loop.algorithm == Algorithm::cluster) {
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config));
    return count;
  }
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, loop.threads,
                                                      launch.config.dynamicSmemBytes));
  return static_cast<int64_t>(count) * multiprocessors;
}

// The same, asked once: the answer takes longer than a launch.
inline int64_t resident(const void* kernel, const Loop& loop, const LoopConfig& launch) {
  int device = 0;
  check_launch(cudaGetDevice(&device), "a recurrent loop");
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int64_t, int, int>, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(kernel, device, loop.shared_bytes, loop.threads, loop.cluster);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  return known.emplace(key, count_resident(kernel, loop, launch, device)).first->second;
}

// True if the loop was launched, false if the device has no room or no permission for it.
template <class Params>
bool launch_loop(const void* kernel, const Loop& loop, const Params& params, int directions,
                 Stream stream) {
  const LoopConfig launch(loop, directions, stream);
  const int64_t together = loop.algorithm == Algorithm::grid ? loop.blocks * directions : 1;
  if (resident(kernel, loop, launch) < together) return false;
  void* arguments[] = {const_cast<Params*>(&params)};
  const cudaError_t error = cudaLaunchKernelExC(&launch.config, kernel, arguments);
  if (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorNotSupported ||
      error == cudaErrorNotPermitted) {
    cudaGetLastError();
    return false;
  }
  check_launch(error, "a recurrent loop");
  return true;
}

// ---- one arithmetic ----

template <class Params>
dim3 gate_step_grid(const Params& params, int directions, int vector) {
  int64_t rows = 0;
  for (int d = 0; d < directions; ++d) rows = std::max(rows, params.direction[d].rows);
  const int64_t blocks = gate_step_blocks(rows, params.hidden, vector);
  return dim3(static_cast<unsigned>(blocks), directions);
}

template <class Math>
void Launcher<Math>::gates_forward(const GateForwardParams& params, int directions, bool save,
                                   Stream stream) {
  const int vector = gate_step_vector<Math>(params, directions);
  const auto kernel = gate_step_forward_kernel<Math>(vector, save);
  kernel<<<gate_step_grid(params, directions, vector), kGateStepThreads, 0,
           static_cast<cudaStream_t>(stream)>>>(params);
  check_launch(cudaGetLastError(), "gate_step_forward");
}

template <class Math>
void Launcher<Math>::gates_backward(const GateBackwardParams& params, int directions,
                                    Stream stream) {
  const int vector = gate_step_vector<Math>(params, directions);
  const auto kernel = gate_step_backward_kernel<Math>(vector);
  kernel<<<gate_step_grid(params, directions, vector), kGateStepThreads, 0,
           static_cast<cudaStream_t>(stream)>>>(params);
  check_launch(cudaGetLastError(), "gate_step_backward");
}

template <class Math>
bool Launcher<Math>::loop_forward(const Loop& loop, const ForwardParams& params, int directions,
                                  bool save, Stream stream) {
  const ForwardKernel kernel =
      save ? forward_kernel<Math, true>(loop) : forward_kernel<Math, false>(loop);
  return launch_loop(reinterpret_cast<const void*>(kernel), loop, params, directions, stream);
}

template <class Math>
bool Launcher<Math>::loop_backward(const Loop& loop, const BackwardParams& params, int directions,
                                   Stream stream) {
  return launch_loop(reinterpret_cast<const void*>(backward_kernel<Math>(loop)), loop, params,
                     directions, stream);
}

}  // namespace cuda
}  // namespace fused_lstm
