// The CUDA layer's own source (csrc/cuda/layer) as ops on CPU tensors: kernels from the emulator,
// matrix products from ATen, a device that exists only as limits.
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "cuda/layer/layer.h"
#include "cuda/layer/ran.h"
#include "cuda/layer/runtime.h"

namespace fused_lstm::cuda {

const DeviceLimits& limits_of(c10::Device) { return known_device("cuda:sm_90"); }
Stream current_stream(c10::Device) { return nullptr; }

namespace {

at::ScalarType type_of(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::fp64:
      return at::kDouble;
    case Arithmetic::bf16:
      return at::kBFloat16;
    case Arithmetic::fp16:
      return at::kHalf;
    default:
      return at::kFloat;
  }
}

at::Tensor view(const Matrix& m, at::ScalarType type) {
  return at::from_blob(m.data, {m.rows, m.cols}, {m.stride, 1}, type);
}

at::Tensor view(const Operand& operand, at::ScalarType type) {
  const at::Tensor stored = view(operand.matrix, type);
  return operand.transposed ? stored.t() : stored;
}

}  // namespace

Gemm::Gemm(Arithmetic arithmetic, Stream stream) : arithmetic_(arithmetic), stream_(stream) {}
Gemm::~Gemm() = default;

void Gemm::operator()(const Matrix& out, const Operand& a, const Operand& b,
                      bool accumulate) const {
  const at::ScalarType type = type_of(arithmetic_);
  const at::ScalarType sum_type = type == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor result = at::mm(view(a, type).to(sum_type), view(b, type).to(sum_type));
  at::Tensor to = view(out, type);
  if (accumulate) result.add_(to.to(sum_type));
  to.copy_(result);
}

namespace {

// What the last call ran, forward and backward: "algorithm=grid variant=0 ...".
std::vector<std::string> last_run_text() {
  std::vector<std::string> passes;
  const Ran ran = last_run();
  for (const Loop& loop : {ran.forward, ran.backward}) {
    std::string& text = passes.emplace_back();
    for (const auto& [name, value] : facts(loop)) {
      const auto* word = std::get_if<std::string>(&value);
      text += name + "=" + (word ? *word : std::to_string(std::get<int64_t>(value))) + " ";
    }
  }
  return passes;
}

// Memory for trace.cuh, 0 for none.
void set_trace_address(int64_t address) { set_trace(reinterpret_cast<int64_t*>(address)); }

// As the device is told where the rows of each step begin.
at::Tensor offsets(const at::Tensor& batch_sizes) {
  const int64_t* sizes = batch_sizes.const_data_ptr<int64_t>();
  const fused_lstm::Steps steps(std::vector<int64_t>(sizes, sizes + batch_sizes.numel()));
  at::Tensor to = at::full({steps.steps() + 1}, -1, batch_sizes.options());
  launch_write_offsets(offset_segments(steps), to.numel(), to.mutable_data_ptr<int64_t>(), nullptr);
  return to;
}

}  // namespace

}  // namespace fused_lstm::cuda

TORCH_LIBRARY(fused_lstm_emulated, m) {
  m.def(
      "lstm_layer(Tensor x, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, "
      "bool[] reverse, bool save) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor gates, Tensor c)",
      TORCH_FN(fused_lstm::cuda::lstm_layer));
  m.def(
      "lstm_layer_backward(Tensor? grad_y, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, "
      "Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor[] weights, bool[] reverse, Tensor y, "
      "Tensor gates, Tensor c, bool[] needs) -> Tensor[]",
      TORCH_FN(fused_lstm::cuda::lstm_layer_backward<false>));
  m.def("last_run() -> str[]", TORCH_FN(fused_lstm::cuda::last_run_text));
  m.def("set_trace(int address) -> ()", TORCH_FN(fused_lstm::cuda::set_trace_address));
  m.def("offsets(Tensor batch_sizes) -> Tensor", TORCH_FN(fused_lstm::cuda::offsets));
}
