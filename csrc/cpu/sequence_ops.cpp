// lstm_sequence on the CPU: lengths and resets become segments, whose rows the kernels walk where
// they lie; only states are put in the segments' order and back.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "cpu/dispatch.h"
#include "cpu/precision.h"
#include "cpu/ranges.h"
#include "cpu/run.h"
#include "cpu/take_turns.h"
#include "segments.h"

namespace fused_lstm::cpu {
namespace {

struct Sequence {
  const OptionalTensor &lengths, &reset, &reset_h, &reset_c;
};

at::Tensor indices(std::vector<int64_t> values) {
  return at::from_blob(values.data(), {int64_t(values.size())}, at::kLong).clone();
}

// The call's segments; none where it has neither lengths nor resets.
std::optional<Segments> read_segments(const LayerCall& call, const at::Tensor& x,
                                      const Sequence& s) {
  const LstmProblem& p = call.problem;
  const bool resets = is_given(s.reset);
  TORCH_CHECK(resets || !(is_given(s.reset_h) || is_given(s.reset_c)),
              "fused_lstm: a state for resets without a mask of them");
  check_tensor(s.reset_h, "reset_h", {p.directions, p.batch, p.output_size()}, x);
  check_tensor(s.reset_c, "reset_c", {p.directions, p.batch, p.hidden_size}, x);
  if (!resets && !is_given(s.lengths)) return std::nullopt;
  TORCH_CHECK(!p.packed, "fused_lstm: packed input has its lengths in batch_sizes");
  at::Tensor lengths, reset;
  if (is_given(s.lengths)) {
    TORCH_CHECK(s.lengths->dim() == 1 && s.lengths->size(0) == p.batch,
                "fused_lstm: expected lengths of shape [", p.batch, "], got ", s.lengths->sizes());
    TORCH_CHECK(at::isIntegralType(s.lengths->scalar_type(), /*includeBool=*/false),
                "fused_lstm: expected lengths of an integer dtype, got ", s.lengths->scalar_type());
    lengths = s.lengths->to(at::kLong).contiguous();
    for (int64_t row = 0; row < p.batch; ++row) {
      const int64_t length = lengths.const_data_ptr<int64_t>()[row];
      TORCH_CHECK(0 <= length && length <= p.steps, "fused_lstm: expected lengths from 0 to ",
                  p.steps, ", the steps of the input, got ", length, " for row ", row);
    }
  }
  if (resets) {
    TORCH_CHECK(s.reset->dim() == 2 && s.reset->size(0) == p.steps && s.reset->size(1) == p.batch,
                "fused_lstm: expected reset of shape [", p.steps, ", ", p.batch, "], got ",
                s.reset->sizes());
    TORCH_CHECK(s.reset->scalar_type() == at::kBool, "fused_lstm: expected reset of dtype bool, ",
                "got ", s.reset->scalar_type());
    reset = s.reset->contiguous();
  }
  return Segments(p.steps, p.batch, lengths.defined() ? lengths.const_data_ptr<int64_t>() : nullptr,
                  reset.defined() ? reset.const_data_ptr<bool>() : nullptr);
}

// With as many as there are, one state is kept; with more no other.
int64_t checked_keep_every(int64_t keep_every, const LstmProblem& p) {
  TORCH_CHECK(keep_every >= 0, "fused_lstm: expected keep_every of at least 0, got ", keep_every);
  return std::min(keep_every, std::max<int64_t>(1, p.steps));
}

LayerCall call_of(const LayerCall& call, const Segments& segments) {
  LayerCall inner = call;
  inner.steps = segments.steps();
  inner.problem.steps = inner.steps.steps();
  inner.problem.batch = segments.size();
  inner.problem.rows = inner.steps.rows();
  inner.problem.packed = true;
  return inner;
}

// From here on the saved tensors are those of live rows only, where that was asked for: as large
// as the packed input's.
void make_compact(const std::optional<Segments>& segments, bool compact, LayerCall* call) {
  if (!segments || !compact) return;
  call->problem.compact = true;
  call->saved_rows = segments->steps().rows();
}

using Places = std::vector<int64_t>;

// f(segment) of all segments.
template <class F>
Places places_of(const Segments& segments, const F& f) {
  Places places(segments.size());
  for (int64_t i = 0; i < segments.size(); ++i) places[i] = f(segments[i]);
  return places;
}

// Where a segment's first state is among those of the rows and, after them, those for resets.
Places first_states(const Segments& segments, bool reverse) {
  return places_of(segments, [&](const Segment& s) {
    return segments.takes_state(s, reverse) ? s.row : segments.batch() + s.row;
  });
}

// The last state of each row among those of the segments and, after them, the rows' first ones,
// which rows without a step give back.
Places last_states(const Segments& segments, bool reverse) {
  Places places(segments.batch());
  for (int64_t row = 0; row < segments.batch(); ++row) places[row] = segments.size() + row;
  for (int64_t i = 0; i < segments.size(); ++i) {
    if (segments.ends_row(segments[i], reverse)) places[segments[i].row] = i;
  }
  return places;
}

// States [D, places, size]: place p of a direction is row p of `first` [D, first_rows, size], and
// from first_rows on of `second`. Undefined tensors are zeros.
template <class PlacesOf>
at::Tensor select(const at::Tensor& first, int64_t first_rows, const at::Tensor& second,
                  int64_t size, const at::TensorOptions& options, const c10::List<bool>& reverse,
                  const PlacesOf& places_of_direction) {
  const at::Tensor sources[] = {first.defined() ? first.contiguous() : first,
                                second.defined() ? second.contiguous() : second};
  const auto directions = int64_t(reverse.size());
  at::Tensor out;
  for (int64_t d = 0; d < directions; ++d) {
    const Places places = places_of_direction(reverse.get(d));
    const auto rows = int64_t(places.size());
    if (d == 0) out = at::empty({directions, rows, size}, options);
    const int64_t bytes = size * int64_t(out.element_size());
    char* to = static_cast<char*>(out.mutable_data_ptr()) + d * rows * bytes;
    for (int64_t i = 0; i < rows; ++i, to += bytes) {
      const bool in_second = places[i] >= first_rows;
      const at::Tensor& source = sources[in_second];
      if (!source.defined()) {
        std::memset(to, 0, bytes);
        continue;
      }
      const int64_t row = places[i] - (in_second ? first_rows : 0) + d * source.size(1);
      std::memcpy(to, static_cast<const char*>(source.const_data_ptr()) + row * bytes, bytes);
    }
  }
  return out;
}

at::Tensor tensor_or_none(const OptionalTensor& t) { return is_given(t) ? *t : at::Tensor(); }

// The states h and c that the segments begin with; none for zeros.
std::pair<OptionalTensor, OptionalTensor> into_segments(const Segments& segments,
                                                        const LstmProblem& p, const Arguments& a,
                                                        const Sequence& s) {
  const auto states = [&](const OptionalTensor& given, const OptionalTensor& fresh,
                          int64_t size) -> OptionalTensor {
    if (!is_given(given) && !is_given(fresh)) return std::nullopt;
    return select(tensor_or_none(given), p.batch, tensor_or_none(fresh), size, a.x.options(),
                  a.reverse, [&](bool backwards) { return first_states(segments, backwards); });
  };
  return {states(a.h0, s.reset_h, p.output_size()), states(a.c0, s.reset_c, p.hidden_size)};
}

// Cleared in a few microseconds, the cost of a task for another thread.
constexpr int64_t kTaskBytes = 1 << 17;

// rows = 0 for steps of no segment, in each of `blocks` blocks of rows.
void clear_dead(const Segments& segments, const at::Tensor& rows, int64_t blocks) {
  if (segments.steps().dead().empty() || rows.numel() == 0) return;
  const int64_t bytes = rows.size(-1) * int64_t(rows.element_size());
  const int64_t block = rows.numel() / blocks * int64_t(rows.element_size());
  char* data = static_cast<char*>(rows.mutable_data_ptr());
  const auto dead = int64_t(segments.steps().dead().size());
  const int64_t pieces = ceil_div(dead * blocks * bytes, kTaskBytes);
  take_turns(pieces, [&](int64_t k) {
    const Range share = part_of(dead, k, pieces);
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t i = share.begin; i < share.end; ++i) {
        std::memset(data + b * block + segments.steps().dead()[i] * bytes, 0, bytes);
      }
    }
  });
}

Forward run_segments(const LayerCall& call, const Segments& segments, const Arguments& a,
                     const Sequence& s, const Forward& dense) {
  const LstmProblem& p = call.problem;
  const LayerCall inner = call_of(call, segments);
  const auto options = a.x.options();
  const auto [h0, c0] = into_segments(segments, p, a, s);
  auto [y, h_n, c_n, gates, c] = dense;
  h_n = at::empty({p.directions, segments.size(), p.output_size()}, options);
  c_n = at::empty({p.directions, segments.size(), p.hidden_size}, options);
  // As results they are zero where no step is; c of a few steps is nobody's result.
  if (p.save && !p.compact && p.keep_every == 0) {
    clear_dead(segments, gates, p.directions);
    clear_dead(segments, c, p.directions);
  }
  if (inner.problem.rows > 0) {
    compute(inner, {a.x, h0, c0, a.weights, a.reverse}, {y, h_n, c_n, gates, c});
  } else {
    y.zero_();
  }
  const auto last = [&](const at::Tensor& state, const OptionalTensor& first, int64_t size) {
    return select(state, segments.size(), tensor_or_none(first), size, options, a.reverse,
                  [&](bool backwards) { return last_states(segments, backwards); });
  };
  return {y, last(h_n, a.h0, p.output_size()), last(c_n, a.c0, p.hidden_size), gates, c};
}

Forward lstm_sequence(const at::Tensor& x, const OptionalTensor& batch_sizes,
                      const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
                      c10::List<bool> reverse, const OptionalTensor& lengths,
                      const OptionalTensor& reset, const OptionalTensor& reset_h,
                      const OptionalTensor& reset_c, bool save, int64_t keep_every, bool compact) {
  const at::ScalarType type = x.scalar_type(), wide = at::kFloat;
  LayerCall call = read_call(x, batch_sizes, h0, c0, weights, reverse, save);
  keep_every = checked_keep_every(keep_every, call.problem);
  call.problem.keep_every = save ? keep_every : 0;
  if (!has_kernels(type)) {
    const ExactProducts exact;
    Forward out =
        lstm_sequence(x.to(wide), batch_sizes, converted(h0, wide), converted(c0, wide),
                      converted(weights, wide), reverse, lengths, reset, converted(reset_h, wide),
                      converted(reset_c, wide), save, 0, compact);
    const at::Tensor& gates = std::get<3>(out);
    return {std::get<0>(out).to(type), std::get<1>(out).to(type), std::get<2>(out).to(type),
            keep_every > 0 ? at::empty({0}, x.options()) : gates.to(type), std::get<4>(out)};
  }
  const Sequence s{lengths, reset, reset_h, reset_c};
  const Arguments arguments{x, h0, c0, weights, reverse};
  const std::optional<Segments> segments = read_segments(call, x, s);
  make_compact(segments, compact, &call);
  const Forward out = allocate(call, x);
  if (segments) return run_segments(call, *segments, arguments, s, out);
  if (call.problem.rows == 0) {
    compute_nothing(h0, c0, out);
    return out;
  }
  compute(call, arguments, out);
  return out;
}

// Gradients of the rows' first states and of those for resets, from those of the segments'.
std::pair<at::Tensor, at::Tensor> out_of_segments(const Segments& segments, const at::Tensor& grad,
                                                  const at::Tensor& grad_last,
                                                  const c10::List<bool>& reverse) {
  const int64_t batch = segments.batch(), size = grad.size(2);
  const at::ScalarType type = state_type(grad.scalar_type());
  const at::Tensor total = at::zeros({grad.size(0), 2 * batch, size}, grad.options().dtype(type));
  for (int64_t d = 0; d < grad.size(0); ++d) {
    const at::Tensor one = total.select(0, d);
    const at::Tensor places = indices(first_states(segments, reverse.get(d)));
    one.index_add_(0, places, grad.select(0, d).to(type));
    if (!grad_last.defined()) continue;
    // Of rows without a step the last state is the first.
    const at::Tensor last = indices(last_states(segments, reverse.get(d)));
    const at::Tensor same = last.ge(segments.size()).unsqueeze(1);
    one.narrow(0, 0, batch)
        .add_(grad_last.select(0, d).to(type).masked_fill(same.logical_not(), 0));
  }
  return {total.narrow(1, 0, batch).to(grad.scalar_type()).contiguous(),
          total.narrow(1, batch, batch).to(grad.scalar_type()).contiguous()};
}

// Gradients of x, h0, c0, the weights, reset_h and reset_c.
std::vector<at::Tensor> gradients_of_segments(const LayerCall& call, const Segments& segments,
                                              const Arguments& a, const Sequence& s,
                                              const Saved& saved, const c10::List<bool>& needs) {
  const LstmProblem& p = call.problem;
  const LayerCall inner = call_of(call, segments);
  const auto options = a.x.options();
  const auto [h0, c0] = into_segments(segments, p, a, s);
  Saved of_segments = saved;
  const auto into_last = [&](at::Tensor* grad, int64_t size) {
    if (!grad->defined()) return;
    *grad = select(*grad, p.batch, at::Tensor(), size, options, a.reverse, [&](bool backwards) {
      return places_of(segments, [&](const Segment& segment) {
        return segments.ends_row(segment, backwards) ? segment.row : p.batch;
      });
    });
  };
  into_last(&of_segments.grad_h_n, p.output_size());
  into_last(&of_segments.grad_c_n, p.hidden_size);

  const size_t count = 3 + a.weights.size();
  c10::List<bool> asked;
  for (size_t i = 0; i < count; ++i) asked.push_back(needs.get(i));
  asked.set(1, needs.get(1) || needs.get(count));
  asked.set(2, needs.get(2) || needs.get(count + 1));
  std::vector<at::Tensor> grads = allocate_gradients(inner, a.x, a.weights, asked);
  if (inner.problem.rows > 0) {
    compute_gradients(inner, {a.x, h0, c0, a.weights, a.reverse}, of_segments, grads);
  } else {
    for (const at::Tensor& grad : grads) grad.zero_();
  }
  grads.resize(count + 2);
  const auto states = [&](size_t first, size_t fresh, const at::Tensor& grad_last) {
    grads[fresh] = at::empty({0}, options);
    if (!asked.get(first)) return;
    std::tie(grads[first], grads[fresh]) =
        out_of_segments(segments, grads[first], grad_last, a.reverse);
  };
  states(1, count, saved.grad_h_n);
  states(2, count + 1, saved.grad_c_n);
  return grads;
}

std::vector<at::Tensor> lstm_sequence_backward(
    const OptionalTensor& grad_y, const OptionalTensor& grad_h_n, const OptionalTensor& grad_c_n,
    const OptionalTensor& grad_c, const at::Tensor& x, const OptionalTensor& batch_sizes,
    const OptionalTensor& h0, const OptionalTensor& c0, at::TensorList weights,
    c10::List<bool> reverse, const OptionalTensor& lengths, const OptionalTensor& reset,
    const OptionalTensor& reset_h, const OptionalTensor& reset_c, const at::Tensor& y,
    const at::Tensor& gates, const at::Tensor& c, c10::List<bool> needs, int64_t keep_every,
    bool compact) {
  const at::ScalarType type = x.scalar_type(), wide = at::kFloat;
  if (!has_kernels(type) && keep_every > 0) {  // the whole layer again: rounded as it was
    const Forward again = lstm_sequence(x, batch_sizes, h0, c0, weights, reverse, lengths, reset,
                                        reset_h, reset_c, true, 0, compact);
    return lstm_sequence_backward(grad_y, grad_h_n, grad_c_n, grad_c, x, batch_sizes, h0, c0,
                                  weights, reverse, lengths, reset, reset_h, reset_c, y,
                                  std::get<3>(again), std::get<4>(again), needs, 0, compact);
  }
  if (!has_kernels(type)) {
    const ExactProducts exact;
    std::vector<at::Tensor> grads = lstm_sequence_backward(
        converted(grad_y, wide), converted(grad_h_n, wide), converted(grad_c_n, wide), grad_c,
        x.to(wide), batch_sizes, converted(h0, wide), converted(c0, wide), converted(weights, wide),
        reverse, lengths, reset, converted(reset_h, wide), converted(reset_c, wide), y.to(wide),
        gates.to(wide), c, needs, keep_every, compact);
    return converted(grads, type);
  }
  LayerCall call = read_call(x, batch_sizes, h0, c0, weights, reverse, true);
  const LstmProblem& p = call.problem;
  call.problem.keep_every = keep_every = checked_keep_every(keep_every, p);
  const size_t count = 3 + weights.size();
  TORCH_CHECK(needs.size() == count + 2, "fused_lstm: expected ", count + 2,
              " flags in needs, for "
              "x, h0, c0, each weight, reset_h and reset_c, got ",
              needs.size());
  c10::List<bool> of_layer;
  for (size_t i = 0; i < count; ++i) of_layer.push_back(needs.get(i));
  const Sequence s{lengths, reset, reset_h, reset_c};
  const std::optional<Segments> segments = read_segments(call, x, s);
  make_compact(segments, compact, &call);
  check_saved(call, grad_y, grad_h_n, grad_c_n, x, y, gates, c, of_layer, weights.size());
  TORCH_CHECK(!(compact && is_given(grad_c)), "fused_lstm: c of live rows only takes no gradient");
  check_tensor(grad_c, "grad_c", c.sizes(), c);
  const Saved saved{dense(grad_y),  dense(grad_h_n),    dense(grad_c_n), dense(grad_c),
                    y.contiguous(), gates.contiguous(), c.contiguous()};
  const Arguments arguments{x, h0, c0, weights, reverse};
  if (segments) {
    return gradients_of_segments(call, *segments, arguments, s, saved, needs);
  }
  std::vector<at::Tensor> grads = allocate_gradients(call, x, weights, of_layer);
  if (p.rows > 0) {
    compute_gradients(call, arguments, saved, grads);
  } else {
    compute_no_gradients(grad_h_n, grad_c_n, needs, grads);
  }
  for (int i = 0; i < 2; ++i) grads.push_back(at::empty({0}, x.options()));
  return grads;
}

}  // namespace
}  // namespace fused_lstm::cpu

TORCH_LIBRARY_IMPL(fused_lstm, CPU, m) {
  m.impl("lstm_sequence", TORCH_FN(fused_lstm::cpu::lstm_sequence));
  m.impl("lstm_sequence_backward", TORCH_FN(fused_lstm::cpu::lstm_sequence_backward));
}
