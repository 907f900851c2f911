// From the plan's arithmetic to the launcher compiled for it.
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "launcher.cuh"
#include "rows.cuh"

namespace fused_lstm::cuda {

namespace {

template <class Call>
auto with_launcher(Arithmetic arithmetic, Call call) {
  switch (arithmetic) {
    case Arithmetic::fp64:
      return call(Launcher<Fp64>());
    case Arithmetic::fp32:
      return call(Launcher<Fp32>());
    case Arithmetic::tf32:
      return call(Launcher<Tf32>());
    case Arithmetic::bf16:
      return call(Launcher<Bf16>());
    default:
      return call(Launcher<Fp16>());
  }
}

}  // namespace

void check_launch(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // not left behind for the next caller to find
  throw std::runtime_error(std::string("fused_lstm: launching ") + what +
                           " failed: " + cudaGetErrorString(error));
}

void launch_gates_forward(Arithmetic arithmetic, const GateForwardParams& params, int directions,
                          bool save, Stream stream) {
  with_launcher(arithmetic,
                [&](auto launcher) { launcher.gates_forward(params, directions, save, stream); });
}

void launch_gates_backward(Arithmetic arithmetic, const GateBackwardParams& params, int directions,
                           Stream stream) {
  with_launcher(arithmetic,
                [&](auto launcher) { launcher.gates_backward(params, directions, stream); });
}

std::string launch_loop_forward(const Loop& loop, Arithmetic arithmetic,
                                const ForwardParams& params, int directions, bool save,
                                Stream stream) {
  return with_launcher(arithmetic, [&](auto launcher) {
    return launcher.loop_forward(loop, params, directions, save, stream);
  });
}

std::string launch_loop_backward(const Loop& loop, Arithmetic arithmetic,
                                 const BackwardParams& params, int directions, Stream stream) {
  return with_launcher(arithmetic, [&](auto launcher) {
    return launcher.loop_backward(loop, params, directions, stream);
  });
}

void launch_write_offsets(const std::vector<OffsetSegment>& segments, int64_t end, int64_t* to,
                          Stream stream) {
  for_offset_launches(
      segments.data(), static_cast<int64_t>(segments.size()), end, to,
      [&](const OffsetsParams& params) {
        write_offsets<<<1, kRowThreads, 0, static_cast<cudaStream_t>(stream)>>>(params);
        check_launch(cudaGetLastError(), "write_offsets");
      });
}

void launch_previous_rows(int element_size, PreviousRowsParams params, Stream stream) {
  if (params.steps.count == 0 || params.steps.batch == 0) return;
  params.chunks = previous_rows_chunks(params);
  const dim3 grid(static_cast<unsigned>(params.steps.count), params.chunks);
  const auto s = static_cast<cudaStream_t>(stream);
  switch (element_size) {
    case 2:
      gather_previous_rows<uint16_t><<<grid, kRowThreads, 0, s>>>(params);
      break;
    case 4:
      gather_previous_rows<uint32_t><<<grid, kRowThreads, 0, s>>>(params);
      break;
    default:
      gather_previous_rows<uint64_t><<<grid, kRowThreads, 0, s>>>(params);
      break;
  }
  check_launch(cudaGetLastError(), "gather_previous_rows");
}

}  // namespace fused_lstm::cuda
