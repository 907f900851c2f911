#include "cuda/layer/runtime.h"

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <mutex>
#include <unordered_map>

namespace fused_lstm::cuda {

namespace {

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// Attributes, not cudaGetDeviceProperties: that one takes milliseconds and reads clocks.
DeviceLimits read_limits(int device) {
  DeviceLimits limits;
  const int major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  const int minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  limits.compute_capability = 10 * major + minor;
  limits.name = "cuda:sm_" + std::to_string(limits.compute_capability);
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  limits.shared_per_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  limits.shared_per_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  limits.reserved_shared = attribute(cudaDevAttrReservedSharedMemoryPerBlock, device);
  limits.registers_per_sm = attribute(cudaDevAttrMaxRegistersPerMultiprocessor, device);
  limits.threads_per_sm = attribute(cudaDevAttrMaxThreadsPerMultiProcessor, device);
  limits.blocks_per_sm = attribute(cudaDevAttrMaxBlocksPerMultiprocessor, device);
  limits.l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
  limits.cluster_blocks = attribute(cudaDevAttrClusterLaunch, device) ? 8 : 1;
  limits.cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
  return limits;
}

}  // namespace

const DeviceLimits& limits_of(c10::Device device) {
  static std::mutex mutex;
  static std::unordered_map<int, DeviceLimits> known;
  const int index = device.has_index() ? device.index() : c10::cuda::current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index);
  if (found != known.end()) return found->second;
  return known.emplace(index, read_limits(index)).first->second;
}

const DeviceLimits& current_device_limits() { return limits_of(c10::Device(c10::kCUDA)); }

Stream current_stream(c10::Device device) {
  return c10::cuda::getCurrentCUDAStream(device.index()).stream();
}

}  // namespace fused_lstm::cuda
