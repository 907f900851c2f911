// The launchers of one arithmetic; defined in launch.cuh, instantiated by launch_fp32.cu and its
// siblings.
#pragma once

#include "cuda/launch.h"
#include "math.cuh"

namespace fused_lstm {
namespace cuda {

template <class Math>
struct Launcher {
  static void gates_forward(const GateForwardParams& params, int directions, bool save,
                            Stream stream);
  static void gates_backward(const GateBackwardParams& params, int directions, Stream stream);
  static std::string loop_forward(const Loop& loop, const ForwardParams& params, int directions,
                                  bool save, Stream stream);
  static std::string loop_backward(const Loop& loop, const BackwardParams& params, int directions,
                                   Stream stream);
};

// Throws where `error` is one.
void check_launch(cudaError_t error, const char* what);

}  // namespace cuda
}  // namespace fused_lstm
