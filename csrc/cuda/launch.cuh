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

// Of this launch, the blocks (plan B: clusters) that the device holds at once; 0 where it cannot
// say. Allows the kernel all the shared memory there is: a smaller limit would be in the way of
// another thread's launch.
inline int64_t count_resident(const void* kernel, const Loop& loop, const LoopConfig& launch,
                              int device) {
  int most_shared = 0, multiprocessors = 0, count = 0;
  const auto works = [](cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();  // not left behind for the next caller to find
    return error == cudaSuccess;
  };
  if (!works(
          cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) ||
      !works(
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared))) {
    return 0;
  }
  if (loop.algorithm == Algorithm::cluster) {
    return works(cudaOccupancyMaxActiveClusters(&count, kernel, &launch.config)) ? count : 0;
  }
  const bool known =
      works(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) &&
      works(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, loop.threads,
                                                          launch.config.dynamicSmemBytes));
  return known ? static_cast<int64_t>(count) * multiprocessors : 0;
}

// Whether this launch can become part of a CUDA graph: tried on a stream of its own, because a
// launch that fails while a stream is captured spoils the whole capture.
inline bool can_capture(const void* kernel, const LoopConfig& launch, void** arguments) {
  cudaLaunchConfig_t config = launch.config;
  cudaGraph_t graph = nullptr;
  bool works = cudaStreamCreateWithFlags(&config.stream, cudaStreamNonBlocking) == cudaSuccess;
  if (works) {
    works = cudaStreamBeginCapture(config.stream, cudaStreamCaptureModeRelaxed) == cudaSuccess &&
            cudaLaunchKernelExC(&config, kernel, arguments) == cudaSuccess;
    works = cudaStreamEndCapture(config.stream, &graph) == cudaSuccess && works;
    if (graph) cudaGraphDestroy(graph);
    cudaStreamDestroy(config.stream);
  }
  cudaGetLastError();
  return works;
}

// What was asked once, because the answer takes longer than a launch.
struct Residency {
  int64_t count = 0;
  bool capturable = false, capture_asked = false;
};

// Asking is not part of what the caller captures: loading a kernel, say, must not spoil it.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

inline Residency residency(const void* kernel, const Loop& loop, const LoopConfig& launch,
                           void** arguments, bool capturing) {
  int device = 0;
  check_launch(cudaGetDevice(&device), "a recurrent loop");
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int64_t, int, int>, Residency> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto key = std::make_tuple(kernel, device, loop.shared_bytes, loop.threads, loop.cluster);
  const RelaxedCapture relaxed;
  auto found = known.find(key);
  if (found == known.end()) {
    const int64_t count = count_resident(kernel, loop, launch, device);
    // Perhaps for want of memory, which a later call may have: asked again.
    if (count == 0) return {};
    found = known.emplace(key, Residency{count}).first;
  }
  Residency& answer = found->second;
  if (capturing && !answer.capture_asked) {
    answer.capturable = can_capture(kernel, launch, arguments);
    answer.capture_asked = true;
  }
  return answer;
}

// Whether the stream is being captured. Throws where that capture has failed already.
inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess) {
    cudaGetLastError();  // another stream is: what that means for this one the launch will say
    return false;
  }
  if (status == cudaStreamCaptureStatusInvalidated) {
    throw std::runtime_error(
        "fused_lstm: the stream's CUDA graph capture was invalidated before this call");
  }
  return status == cudaStreamCaptureStatusActive;
}

// "" if the loop was launched, else why the device refuses it.
template <class Params>
std::string launch_loop(const void* kernel, const Loop& loop, const Params& params, int directions,
                        Stream stream) {
  const LoopConfig launch(loop, directions, stream);
  void* arguments[] = {const_cast<Params*>(&params)};
  const bool capturing = is_capturing(launch.config.stream);
  const Residency room = residency(kernel, loop, launch, arguments, capturing);
  const int64_t together = loop.algorithm == Algorithm::grid ? loop.blocks * directions : 1;
  if (room.count < together) {
    return "it needs " + std::to_string(together) + " at once, and " + std::to_string(room.count) +
           " are resident";
  }
  if (capturing && !room.capturable) return "this launch cannot be captured into a CUDA graph";
  const cudaError_t error = cudaLaunchKernelExC(&launch.config, kernel, arguments);
  if (error == cudaErrorCooperativeLaunchTooLarge || error == cudaErrorLaunchOutOfResources ||
      error == cudaErrorNotSupported || error == cudaErrorNotPermitted) {
    cudaGetLastError();
    return cudaGetErrorString(error);
  }
  check_launch(error, "a recurrent loop");
  return "";
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
std::string Launcher<Math>::loop_forward(const Loop& loop, const ForwardParams& params,
                                         int directions, bool save, Stream stream) {
  const ForwardKernel kernel =
      save ? forward_kernel<Math, true>(loop) : forward_kernel<Math, false>(loop);
  return launch_loop(reinterpret_cast<const void*>(kernel), loop, params, directions, stream);
}

template <class Math>
std::string Launcher<Math>::loop_backward(const Loop& loop, const BackwardParams& params,
                                          int directions, Stream stream) {
  return launch_loop(reinterpret_cast<const void*>(backward_kernel<Math>(loop)), loop, params,
                     directions, stream);
}

}  // namespace cuda
}  // namespace fused_lstm
