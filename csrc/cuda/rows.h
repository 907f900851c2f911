// Parameters of rows.cuh, in the manner of params.h.
#pragma once

#include "params.h"

namespace fused_lstm {
namespace cuda {

// The steps from `step` on, until the next segment, have `live` rows each; the first begins at row
// `offset`.
struct OffsetSegment {
  int64_t offset;
  int32_t step;
  int32_t live;
};

// A kernel takes at most 4096 bytes of parameters on every toolkit and device.
constexpr int kSegmentsPerLaunch = 250;

struct OffsetsParams {
  int64_t* to;    // [.., end) in device memory
  int32_t end;    // of the steps of the last segment
  int32_t count;  // at most kSegmentsPerLaunch
  OffsetSegment segment[kSegmentsPerLaunch];
};
static_assert(sizeof(OffsetsParams) <= 4096, "kernel parameters");

// to[n] = the h that row n started from: of the step before in walking order, else h0.
struct PreviousRowsParams {
  Steps steps;
  int64_t width;     // P
  int64_t h_stride;  // between rows of h
  const void* h;     // [N, P] T
  const void* h0;    // [B, P] T contiguous, or nullptr for zeros
  void* to;          // [N, P] T contiguous
  int32_t reverse;   // as in ForwardDirection
  int32_t chunks;    // blocks per step
};

}  // namespace cuda
}  // namespace fused_lstm
