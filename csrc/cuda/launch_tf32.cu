#include "launch.cuh"

namespace fused_lstm::cuda {

template struct Launcher<Tf32>;

}  // namespace fused_lstm::cuda
