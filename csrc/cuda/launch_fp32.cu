#include "launch.cuh"

namespace fused_lstm::cuda {

template struct Launcher<Fp32>;

}  // namespace fused_lstm::cuda
