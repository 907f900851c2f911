// What this machine is, for the planner.
#include <algorithm>

#if defined(__linux__)
#include <unistd.h>
#endif

#include "layer.h"

namespace fused_lstm::cpu {
namespace {

int64_t l2_bytes() {
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  static const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (size > 0) return size;
#endif
  return int64_t(1) << 20;  // as the cores of the last years have it
}

}  // namespace

template <class T>
CpuMachine machine(int threads) {
  CpuMachine m;
  m.threads = std::max(1, threads);
  m.lanes = kernels<T>().lanes;
  m.pair = kPair<T>;
  m.vector_bytes = int(m.lanes * sizeof(Acc<T>));
  // AVX-512 runs one or two a cycle, by processor; narrower sets two.
  m.fma_per_cycle = m.vector_bytes == 64 ? 1 : 2;
  m.tile_rows = kernels<T>().tile_rows;
  m.l2_bytes = l2_bytes();
  return m;
}

template CpuMachine machine<float>(int);
template CpuMachine machine<double>(int);
#if defined(FUSED_LSTM_X86)
template CpuMachine machine<bfloat16>(int);
#endif

}  // namespace fused_lstm::cpu
