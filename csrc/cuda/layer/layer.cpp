#include "cuda/layer/layer.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>

#include <map>
#include <string>
#include <tuple>

#include "cuda/layer/ran.h"
#include "cuda/layer/runtime.h"

namespace fused_lstm::cuda {

namespace {

// Contiguous; undefined where absent.
at::Tensor dense(const OptionalTensor& tensor) {
  return is_given(tensor) ? tensor->contiguous() : at::Tensor();
}

at::Tensor write_offsets(const fused_lstm::Steps& steps, const at::Tensor& x, Stream stream) {
  const int64_t count = steps.steps() + 1;
  at::Tensor to = at::empty({count}, x.options().dtype(at::kLong));
  launch_write_offsets(offset_segments(steps), count, to.mutable_data_ptr<int64_t>(), stream);
  return to;
}

DirectionWeights read_weights(at::TensorList weights, bool reverse) {
  const size_t count = weights.size();
  DirectionWeights direction;
  direction.reverse = reverse;
  direction.w_ih = weights[0].contiguous();
  direction.w_hh = weights[1].contiguous();
  if (count >= 4) {
    direction.b_ih = weights[2].contiguous();
    direction.b_hh = weights[3].contiguous();
  }
  if (count == 3 || count == 5) direction.w_hr = weights[count - 1].contiguous();
  return direction;
}

}  // namespace

std::vector<OffsetSegment> offset_segments(const fused_lstm::Steps& steps) {
  std::vector<OffsetSegment> segments;
  for (int64_t t = 0; t < steps.steps(); ++t) {
    if (t > 0 && steps.size(t) == steps.size(t - 1)) continue;
    segments.push_back(
        {steps.offset(t), static_cast<int32_t>(t), static_cast<int32_t>(steps.size(t))});
  }
  if (segments.empty()) segments.push_back({0, 0, 0});
  return segments;
}

cuda::Steps Layer::device_steps() const {
  return {problem.steps, problem.batch,
          device_offsets.defined() ? device_offsets.const_data_ptr<int64_t>() : nullptr};
}

Layer read_layer(LayerCall call, const at::Tensor& x, const OptionalTensor& h0,
                 const OptionalTensor& c0, at::TensorList weights, const c10::List<bool>& reverse) {
  Layer layer;
  layer.problem = call.problem;
  layer.steps = std::move(call.steps);
  layer.weights_per_direction = call.per_direction;
  layer.stream = current_stream(x.device());
  for (int d = 0; d < layer.problem.directions; ++d) {
    layer.directions.push_back(
        read_weights(weights.slice(d * call.per_direction, call.per_direction), reverse[d]));
  }
  layer.x = x.reshape({layer.problem.rows, x.size(-1)}).contiguous();
  layer.h0 = dense(h0);
  layer.c0 = dense(c0);
  if (layer.problem.packed) layer.device_offsets = write_offsets(layer.steps, x, layer.stream);
  layer.output_shape = x.sizes().vec();
  layer.output_shape.back() = layer.problem.directions * layer.output_size();
  layer.acc_type = state_type(x.scalar_type());
  layer.arithmetic =
      arithmetic_of(layer.problem.dtype, at::globalContext().allowTF32CuDNN(at::Float32Op::RNN));
  layer.gemm = std::make_unique<Gemm>(layer.arithmetic, layer.stream);
  return layer;
}

const Plan& plan_layer(const Layer& layer) {
  // Not what a plan depends on: input_size, bias.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int, Arithmetic, bool, int,
                         std::string>;
  static thread_local std::map<Key, Plan> plans;
  const LstmProblem& p = layer.problem;
  const std::string asked = request_text();
  const Key key(p.steps, p.batch, p.rows, p.hidden_size, p.proj_size, p.directions,
                layer.arithmetic, p.save, layer.x.device().index(), asked);
  const auto found = plans.find(key);
  if (found != plans.end()) return found->second;
  if (plans.size() >= 256) plans.clear();
  const bool tf32 = layer.arithmetic == Arithmetic::tf32;
  return plans.emplace(key, plan(p, limits_of(layer.x.device()), tf32, parse_request(asked)))
      .first->second;
}

char* address(const at::Tensor& tensor, int64_t elements) {
  return static_cast<char*>(tensor.data_ptr()) + elements * tensor.element_size();
}

void* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.data_ptr() : nullptr; }

char* direction_data(const at::Tensor& tensor, int d) {
  return tensor.defined() ? address(tensor, d * tensor.stride(0)) : nullptr;
}

Matrix rows_of(char* data, const at::Tensor& like, int64_t first, int64_t rows, int64_t cols,
               int64_t stride) {
  return {data + first * stride * like.element_size(), rows, cols, stride};
}

}  // namespace fused_lstm::cuda
