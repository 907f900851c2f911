#include "launch.cuh"

namespace fused_lstm::cuda {

template struct Launcher<Fp16>;

}  // namespace fused_lstm::cuda
