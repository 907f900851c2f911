// Rows of packed input: where each step's rows begin, and the row that came before each row.
//
// The offsets reach the device as kernel parameters: no pinned memory, no copy that the host waits
// for, and a captured CUDA graph replays them. Steps with the same number of rows travel as one.
#pragma once

#include "hw.cuh"
#include "rows.h"

namespace fused_lstm {
namespace cuda {

constexpr int kRowThreads = 256;

// to[t], for the steps of all segments. Launch: one block of kRowThreads threads.
__global__ void __launch_bounds__(kRowThreads)
    write_offsets(const __grid_constant__ OffsetsParams p) {
  for (int32_t t = p.segment[0].step + hw::thread(); t < p.end; t += kRowThreads) {
    int low = 0, high = p.count;  // the last segment that begins no later than t
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (p.segment[middle].step <= t ? low : high) = middle;
    }
    const OffsetSegment& segment = p.segment[low];
    p.to[t] = segment.offset + static_cast<int64_t>(t - segment.step) * segment.live;
  }
}

// Calls launch(params) for as many segments at a time as one launch takes; `end` is the number of
// offsets, one more than there are steps.
template <class Launch>
void for_offset_launches(const OffsetSegment* segments, int64_t count, int64_t end, int64_t* to,
                         Launch launch) {
  for (int64_t first = 0; first < count; first += kSegmentsPerLaunch) {
    OffsetsParams params = {};
    params.to = to;
    params.count = static_cast<int32_t>(count - first < kSegmentsPerLaunch ? count - first
                                                                           : kSegmentsPerLaunch);
    const int64_t next = first + params.count;
    params.end = next < count ? segments[next].step : static_cast<int32_t>(end);
    for (int i = 0; i < params.count; ++i) params.segment[i] = segments[first + i];
    launch(params);
  }
}

// Blocks per step, so that a thread of the fullest step copies about 4 elements.
inline int32_t previous_rows_chunks(const PreviousRowsParams& p) {
  const int64_t chunks = ceil_div(p.steps.batch * p.width, 4 * kRowThreads);
  return static_cast<int32_t>(chunks < 1024 ? chunks : 1024);
}

// Launch: grid (steps, chunks), kRowThreads threads. E is an unsigned integer of the element's
// size.
template <class E>
__global__ void __launch_bounds__(kRowThreads)
    gather_previous_rows(const __grid_constant__ PreviousRowsParams p) {
  const int64_t t = hw::block_x();
  const int64_t t_prev = p.reverse ? t + 1 : t - 1;
  const bool has_prev = t_prev >= 0 && t_prev < p.steps.count;
  const int64_t rows = p.steps.live(t);
  const int64_t prev_rows = has_prev ? p.steps.live(t_prev) : 0;
  const E* prev =
      has_prev ? static_cast<const E*>(p.h) + p.steps.offset(t_prev) * p.h_stride : nullptr;
  const E* h0 = static_cast<const E*>(p.h0);
  E* to = static_cast<E*>(p.to) + p.steps.offset(t) * p.width;
  const int64_t stride = static_cast<int64_t>(p.chunks) * kRowThreads;
  for (int64_t i = static_cast<int64_t>(hw::block_y()) * kRowThreads + hw::thread();
       i < rows * p.width; i += stride) {
    const int64_t row = i / p.width;
    const int64_t column = i - row * p.width;
    to[i] = row < prev_rows ? prev[row * p.h_stride + column] : h0 ? h0[i] : E(0);
  }
}

}  // namespace cuda
}  // namespace fused_lstm
