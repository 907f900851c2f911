// The launchers: from plain params to a kernel on a stream. No CUDA and no torch header, so that
// the code above them also runs where the tests' host emulator stands in for the device.
//
// Each throws std::runtime_error with CUDA's own message where a launch fails.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/params.h"
#include "cuda/plan.h"
#include "cuda/rows.h"

namespace fused_lstm::cuda {

using Stream = void*;  // cudaStream_t

// Plan D: the gates of one step, for `directions` directions.
void launch_gates_forward(Arithmetic arithmetic, const GateForwardParams& params, int directions,
                          bool save, Stream stream);
void launch_gates_backward(Arithmetic arithmetic, const GateBackwardParams& params, int directions,
                           Stream stream);

// Plans A, B, C: the whole recurrent loop. "", or with nothing launched why the device refuses it
// (too few blocks resident at once, or no cooperative launch in this place): run plan D then.
std::string launch_loop_forward(const Loop& loop, Arithmetic arithmetic,
                                const ForwardParams& params, int directions, bool save,
                                Stream stream);
std::string launch_loop_backward(const Loop& loop, Arithmetic arithmetic,
                                 const BackwardParams& params, int directions, Stream stream);

// Packed input: `end` offsets, one more than there are steps, to device memory.
void launch_write_offsets(const std::vector<OffsetSegment>& segments, int64_t end, int64_t* to,
                          Stream stream);
// E: bytes per element, 2, 4 or 8.
void launch_previous_rows(int element_size, PreviousRowsParams params, Stream stream);

}  // namespace fused_lstm::cuda
