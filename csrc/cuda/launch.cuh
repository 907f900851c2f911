// Launches the kernels of one arithmetic.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels.cuh"
#include "launcher.cuh"

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
