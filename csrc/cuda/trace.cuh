// Instruments of a build with FUSED_LSTM_CUDA_TRACE; nothing in every other build.
//
// The trace is memory that the device can write, int64. For the watchdog it is the host's, which
// outlives a trap; for stamps the device's, which a fence need not wait for.
//   [0] 1 once a poll has given up: then [1..5] say which block x, block y, warp, step and k tile
//   [6] polls after which a wait gives up, and traps: a hang says where it is
//   [kTraceHead + kTraceStamps * step + i] clock of lane 0 of warp 0 of block 0, as Stamp says, of
//       the first kTraceSteps steps
#pragma once

#include "math.cuh"

namespace fused_lstm {
namespace cuda {

enum Stamp { kBegun, kMultiplied, kFenced, kSummed, kStored, kWritten };

#ifdef FUSED_LSTM_CUDA_TRACE

struct Watch {
  int64_t* trace = nullptr;
  int64_t step = 0, spins = 0;

  __device__ __forceinline__ Watch() {}
  __device__ __forceinline__ Watch(int64_t* trace_, int64_t step_) : trace(trace_), step(step_) {}
  __device__ __forceinline__ void spin(int k_tile) {
    if (!trace || ++spins % hw::kSpinsPerLook != 0 || spins <= trace[6]) return;
    const int64_t where[] = {1, hw::block_x(), hw::block_y(), hw::warp(), step, k_tile};
    if (hw::lane() != 0) return;  // a trap of the others could come before the stores
    for (int i = 5; i >= 0; --i) hw::store_system(trace + i, where[i]);
    hw::trap();
  }
};

__device__ __forceinline__ void stamp(int64_t* trace, int64_t step, Stamp which) {
  if (!trace || step >= kTraceSteps) return;
  if (hw::thread() != 0 || hw::block_x() != 0 || hw::block_y() != 0) return;
  trace[kTraceHead + kTraceStamps * step + which] = hw::clock();
}

#else

struct Watch {
  __device__ __forceinline__ Watch() {}
  __device__ __forceinline__ Watch(int64_t*, int64_t) {}
  __device__ __forceinline__ void spin(int) {}
};

__device__ __forceinline__ void stamp(int64_t*, int64_t, Stamp) {}

#endif

}  // namespace cuda
}  // namespace fused_lstm
