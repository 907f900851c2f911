// Parameters of rows.cuh, in the manner of params.h.
#pragma once

#include "params.h"

namespace fused_lstm {
namespace cuda {

// A kernel takes at most 4096 bytes of parameters on every toolkit and device.
constexpr int kOffsetsPerLaunch = 480;

struct OffsetsParams {
  int64_t count;  // at most kOffsetsPerLaunch
  int64_t* to;    // [count] in device memory
  int64_t values[kOffsetsPerLaunch];
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
