// An all-gather through L2 alone: what plan C's exchange (csrc/cuda/exchange.cuh) costs without a
// product, and what its fence costs in each place.
//
//   exchange KIB BLOCKS FENCE STEPS     prints microseconds of the whole launch
//
// In each step every block reads KIB, of which each of the BLOCKS has stored its share in the step
// before. FENCE: early (after the polls, as plan C has it, but in every step), third (in every
// third step, as plan C has it), late (after the stores), none (which may read what is stale).
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cuda/exchange.cuh"

namespace fused_lstm {
namespace cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct ExchangeParams {
  char* memory;   // [kGridRing][bytes], all bits set
  int64_t bytes;  // a multiple of kWarps * kOperandBytes
  int64_t steps;
  int32_t blocks, fence_every;  // fence_every 0: none
  int32_t late;
  uint32_t* result;  // [blocks * kThreads]: what was read, so that it is
};

__global__ void __launch_bounds__(kThreads, 1)
    all_gather(const __grid_constant__ ExchangeParams p) {
  using Load = PolledLoad<Bfloat16, GpuScope, 1>;
  using Operands = PolledOperands<Bf16, Load, 1>;
  const int tiles = static_cast<int>(p.bytes / kOperandBytes / kWarps);
  const int64_t own = p.bytes / 4 / p.blocks, first = hw::block_x() * own;
  const auto at = [&](int64_t epoch) { return p.memory + epoch % kGridRing * p.bytes; };
  const auto store = [&](int64_t epoch, uint32_t value) {
    for (int64_t i = hw::thread(); i < own; i += kThreads) {
      hw::store_gpu(reinterpret_cast<uint32_t*>(at(epoch)) + first + i, value);
    }
  };
  const auto fence = [&](int64_t step, bool late) {
    if (p.fence_every > 0 && late == (p.late != 0) && step % p.fence_every == 0) hw::fence_gpu();
  };
  uint32_t sum = 0;
  Operands operands;
  store(0, 1);
  for (int64_t step = 0; step < p.steps; ++step) {
    operands.begin(at(step) + static_cast<int64_t>(hw::warp()) * tiles * kOperandBytes, 0, tiles,
                   false, Watch());
    for (int j0 = 0; j0 < tiles; j0 += Operands::kTiles) {
#pragma unroll
      for (int i = 0; i < Operands::kTiles; ++i) {
        if (j0 + i >= tiles) break;
        operands.wait(i, j0 + i);
        for (const uint32_t word : operands.operand(i, j0 + i, 0).word[0]) sum += word;
        operands.used(i, j0 + i);
      }
    }
    fence(step, false);
    hw::sync_block();
    store(step + 1, static_cast<uint32_t>(step));
    store(step + kGridRing - 1, ~0u);
    fence(step, true);
  }
  p.result[hw::block_x() * kThreads + hw::thread()] = sum;
}

}  // namespace cuda
}  // namespace fused_lstm

using fused_lstm::cuda::ExchangeParams;
using fused_lstm::cuda::kThreads;

#ifdef FUSED_LSTM_HOST_EMULATION

double run(ExchangeParams& p, size_t bytes) {
  std::vector<char> memory(bytes + 16, '\xff');
  std::vector<uint32_t> result(static_cast<size_t>(p.blocks) * kThreads);
  p.memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16);
  p.result = result.data();
  emulator::Grid grid;
  grid.x = p.blocks;
  grid.threads = kThreads;
  const auto start = std::chrono::steady_clock::now();
  emulator::launch(grid, [&] { fused_lstm::cuda::all_gather(p); });
  const std::chrono::duration<double, std::micro> taken = std::chrono::steady_clock::now() - start;
  return taken.count();
}

#else

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

double run(ExchangeParams& p, size_t bytes) {
  check(cudaMalloc(&p.memory, bytes));
  check(cudaMalloc(&p.result, sizeof(uint32_t) * p.blocks * kThreads));
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  float least = 0;
  for (int i = 0; i < 5; ++i) {
    check(cudaMemset(p.memory, 0xff, bytes));
    void* arguments[] = {&p};
    check(cudaEventRecord(begin));
    check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(&fused_lstm::cuda::all_gather),
                                      dim3(p.blocks), dim3(kThreads), arguments, 0, nullptr));
    check(cudaEventRecord(end));
    check(cudaDeviceSynchronize());
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i == 0 || milliseconds < least) least = milliseconds;
  }
  return 1000 * least;
}

#endif

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "expected: exchange KIB BLOCKS early|third|late|none STEPS\n");
    return 2;
  }
  ExchangeParams p = {};
  p.bytes = std::atoll(argv[1]) * 1024;
  p.blocks = std::atoi(argv[2]);
  p.steps = std::atoll(argv[4]);
  p.late = std::strcmp(argv[3], "late") == 0;
  p.fence_every = std::strcmp(argv[3], "none") == 0    ? 0
                  : std::strcmp(argv[3], "third") == 0 ? 3
                                                       : 1;
  std::printf("%.3f\n", run(p, static_cast<size_t>(p.bytes) * fused_lstm::cuda::kGridRing));
  return 0;
}
