#include "launch.cuh"

namespace fused_lstm::cuda {

template struct Launcher<Bf16>;

}  // namespace fused_lstm::cuda
