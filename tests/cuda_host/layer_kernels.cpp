// csrc/cuda/launch.h on the emulator: the same kernels, the same choice of instance, on host
// memory.
#include <algorithm>
#include <cstdlib>

#include "cuda/kernels.cuh"
#include "cuda/launch.h"
#include "cuda/rows.cuh"

// The emulator tells the address sanitizer of every change of stacks; here there is none to tell.
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t) {}
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*) {}
void* __asan_region_is_poisoned(void*, size_t) { return nullptr; }
}

namespace fused_lstm::cuda {

namespace {

uint64_t seed() {
  const char* text = std::getenv("FUSED_LSTM_EMULATOR_SEED");
  return text ? std::strtoull(text, nullptr, 10) : 0;
}

// As a device does that has too little room, or that cannot launch cooperatively in this place.
bool refused() { return std::getenv("FUSED_LSTM_EMULATOR_REFUSES") != nullptr; }

emulator::Grid grid_of(const Loop& loop, int directions) {
  emulator::Grid grid;
  grid.x = static_cast<int>(loop.blocks);
  grid.y = directions;
  grid.threads = loop.threads;
  grid.cluster = loop.cluster;
  grid.shared = static_cast<size_t>(loop.shared_bytes);
  grid.seed = seed();
  return grid;
}

template <class Params>
emulator::Grid gate_step_grid(const Params& params, int directions, int vector) {
  int64_t rows = 0;
  for (int d = 0; d < directions; ++d) rows = std::max(rows, params.direction[d].rows);
  emulator::Grid grid;
  grid.x = static_cast<int>(gate_step_blocks(rows, params.hidden, vector));
  grid.y = directions;
  grid.threads = kGateStepThreads;
  return grid;
}

// TF32 kernels are covered by test_cuda_kernels_host.py.
template <class Call>
auto with_math(Arithmetic arithmetic, Call call) {
  switch (arithmetic) {
    case Arithmetic::fp64:
      return call(Fp64());
    case Arithmetic::bf16:
      return call(Bf16());
    case Arithmetic::fp32:
      return call(Fp32());
    default:
      throw std::runtime_error("not compiled for the host");
  }
}

template <class Integer>
void previous_rows(const PreviousRowsParams& params) {
  emulator::Grid grid;
  grid.x = static_cast<int>(params.steps.count);
  grid.y = params.chunks;
  grid.threads = kRowThreads;
  emulator::launch(grid, [&] { gather_previous_rows<Integer>(params); });
}

}  // namespace

void launch_gates_forward(Arithmetic arithmetic, const GateForwardParams& params, int directions,
                          bool save, Stream) {
  with_math(arithmetic, [&](auto math) {
    using Math = decltype(math);
    const int vector = gate_step_vector<Math>(params, directions);
    const auto kernel = gate_step_forward_kernel<Math>(vector, save);
    emulator::launch(gate_step_grid(params, directions, vector), [&] { kernel(params); });
  });
}

void launch_gates_backward(Arithmetic arithmetic, const GateBackwardParams& params, int directions,
                           Stream) {
  with_math(arithmetic, [&](auto math) {
    using Math = decltype(math);
    const int vector = gate_step_vector<Math>(params, directions);
    const auto kernel = gate_step_backward_kernel<Math>(vector);
    emulator::launch(gate_step_grid(params, directions, vector), [&] { kernel(params); });
  });
}

std::string launch_loop_forward(const Loop& loop, Arithmetic arithmetic,
                                const ForwardParams& params, int directions, bool save, Stream) {
  if (refused()) return "the emulator was told to refuse";
  with_math(arithmetic, [&](auto math) {
    using Math = decltype(math);
    const ForwardKernel kernel =
        save ? forward_kernel<Math, true>(loop) : forward_kernel<Math, false>(loop);
    emulator::launch(grid_of(loop, directions), [&] { kernel(params); });
  });
  return "";
}

std::string launch_loop_backward(const Loop& loop, Arithmetic arithmetic,
                                 const BackwardParams& params, int directions, Stream) {
  if (refused()) return "the emulator was told to refuse";
  with_math(arithmetic, [&](auto math) {
    const BackwardKernel kernel = backward_kernel<decltype(math)>(loop);
    emulator::launch(grid_of(loop, directions), [&] { kernel(params); });
  });
  return "";
}

void launch_write_offsets(const std::vector<OffsetSegment>& segments, int64_t end, int64_t* to,
                          Stream) {
  for_offset_launches(segments.data(), static_cast<int64_t>(segments.size()), end, to,
                      [](const OffsetsParams& params) {
                        emulator::Grid grid;
                        grid.threads = kRowThreads;
                        emulator::launch(grid, [&] { write_offsets(params); });
                      });
}

void launch_previous_rows(int element_size, PreviousRowsParams params, Stream) {
  params.chunks = previous_rows_chunks(params);
  if (element_size == 2) return previous_rows<uint16_t>(params);
  if (element_size == 4) return previous_rows<uint32_t>(params);
  previous_rows<uint64_t>(params);
}

}  // namespace fused_lstm::cuda
