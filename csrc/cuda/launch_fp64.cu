#include "launch.cuh"

namespace fused_lstm::cuda {

template struct Launcher<Fp64>;

}  // namespace fused_lstm::cuda
