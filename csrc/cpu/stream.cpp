// A stack of layers of one direction that is called for a few steps at a time and keeps the state:
// weights are packed once, all layers run in one call, and all memory but the output is kept.
#include "stream.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>

#include "checks.h"
#include "dispatch.h"
#include "gate_panels.h"
#include "memory_block.h"
#include "plan_and_run.h"
#include "precision.h"

namespace py = pybind11;

namespace fused_lstm::cpu {
namespace {

// Memory that only grows.
class Memory {
 public:
  void* at_least(size_t bytes) {
    if (!block_ || block_->size < bytes) block_ = std::make_unique<MemoryBlock>(bytes);
    return block_->begin();
  }

 private:
  std::unique_ptr<MemoryBlock> block_;
};

// Whether a tensor is numbers in this machine's memory and nothing else. A stream is no op, so the
// dispatcher honours no key of its tensors; those that it would have to honour are too many to
// list, and new ones come, so a tensor may have these only.
bool is_plain(const at::Tensor& t) {
  using c10::DispatchKey;
  static const uint64_t known =
      c10::DispatchKeySet({DispatchKey::CPU, DispatchKey::AutogradCPU, DispatchKey::AutocastCPU,
                           DispatchKey::ADInplaceOrView, DispatchKey::Negative})
          .raw_repr();
  return (t.key_set().raw_repr() & ~known) == 0;
}

// The numbers as they are to be read: a view may say that those in memory are negated.
at::Tensor as_read(const at::Tensor& t) { return t.is_neg() ? t.resolve_neg() : t; }

// While it lives, nothing comes between an operation and the kernels of PyTorch: no transform, no
// mode, no tracer. For memory of the stream's own.
struct NothingBetween : c10::impl::ForceDispatchKeyGuard {
  NothingBetween() : NothingBetween(c10::impl::tls_local_dispatch_key_set()) {}
  explicit NothingBetween(const c10::impl::LocalDispatchKeySet& now)
      : ForceDispatchKeyGuard(
            now.included_ & c10::DispatchKeySet({c10::DispatchKey::BackendSelect,
                                                 c10::DispatchKey::ADInplaceOrView}),
            now.excluded_ | c10::DispatchKeySet(c10::DispatchKey::Python)) {}
};

// Whether a mode or a tracer is to see every operation of this thread.
bool is_watched() {
  return c10::impl::TorchDispatchModeTLS::any_modes_set() ||
         c10::impl::tls_local_dispatch_key_set().included_.has_any(
             c10::DispatchKeySet({c10::DispatchKey::Tracer, c10::DispatchKey::PreDispatch}));
}

// What a weight was when it was packed: its memory, which is held so that no other can come to lie
// there, how often it had been changed in place, and some of its elements: fused optimizers and
// .data change weights without counting.
class Mark {
 public:
  explicit Mark(const at::Tensor& w)
      : memory_(w.detach()), version_(version_of(w)), bytes_(bytes_needed(w)) {
    const int64_t rows = w.size(0), columns = w.dim() > 1 ? w.size(1) : 1;
    for (int64_t i = 0; i < kSamples; ++i) {
      // Two rows of each gate, and as many columns apart: 5 is prime to 8.
      const int64_t row = (2 * i + 1) * rows / (2 * kSamples);
      const int64_t column = (2 * (5 * i % kSamples) + 1) * columns / (2 * kSamples);
      const int64_t at = row * w.stride(0) + (w.dim() > 1 ? column * w.stride(1) : 0);
      offsets_[i] = at * w.element_size();
    }
    if (bytes_ > 0) samples_ = read();
  }

  bool is_of(const at::Tensor& w) const {
    return memory_.const_data_ptr() == w.const_data_ptr() && version_ == version_of(w) &&
           memory_.sizes() == w.sizes() && memory_.strides() == w.strides() &&
           memory_.scalar_type() == w.scalar_type() && memory_.is_neg() == w.is_neg() &&
           (bytes_ == 0 || (memory_.storage().nbytes() >= bytes_ && samples_ == read()));
  }

 private:
  static constexpr int64_t kSamples = 8;
  using Samples = std::array<uint64_t, kSamples>;

  static uint32_t version_of(const at::Tensor& w) {
    return w.is_inference() ? 0 : uint32_t(w._version());
  }

  // As bits: a NaN is equal to itself.
  Samples read() const {
    const char* base = static_cast<const char*>(memory_.const_data_ptr());
    Samples found{};
    const auto read_as = [&](auto bits) {
      for (int64_t i = 0; i < kSamples; ++i) {
        std::memcpy(&bits, base + offsets_[i], sizeof(bits));
        found[i] = bits;
      }
    };
    const size_t size = memory_.element_size();  // of the dtypes that read_call() lets through
    size == 8 ? read_as(uint64_t{}) : size == 4 ? read_as(uint32_t{}) : read_as(uint16_t{});
    return found;
  }

  at::Tensor memory_;
  uint32_t version_;
  size_t bytes_;  // of the storage
  std::array<int64_t, kSamples> offsets_{};
  Samples samples_{};
};

struct StreamLayer {
  std::vector<at::Tensor> given;  // w_ih, w_hh, b_ih, b_hh, w_hr: those there are
  LayerCall call;                 // of one step, as packed
  std::vector<Mark> packed_from;  // of `given`; none while there are no panels
  Memory panels;
};

class Stream {
 public:
  Stream(const std::vector<std::vector<at::Tensor>>& weights, int64_t batch)
      : given_type_(weights.at(0).at(0).scalar_type()),
        type_(has_kernels(given_type_) ? given_type_ : at::kFloat) {
    const NothingBetween guard;
    for (const auto& given : weights) layers_.push_back({given, {}, {}, {}});
    const LstmProblem p = read(0, batch, weights[0][0].size(-1)).problem;
    const c10::InferenceMode normal(false);  // the state may be changed in any mode
    const auto state = at::TensorOptions().dtype(type_);
    const auto count = int64_t(layers_.size());
    h_ = at::zeros({count, batch, p.output_size()}, state);
    c_ = at::zeros({count, batch, p.hidden_size}, state);
    input_size_ = p.input_size;
    pack();
  }

  // Whether weights can be read as they lie.
  static bool takes(const std::vector<at::Tensor>& weights) {
    return std::all_of(weights.begin(), weights.end(), is_plain);
  }

  // Whether the panels are not of what they were packed from, or for other kernels.
  bool outdated() const {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    return is_outdated();
  }

  // y [T, B, P] of x [T, B, I], the state carried on. None where something is to see what is
  // computed, in operations that it knows.
  at::Tensor run(const at::Tensor& given) {
    if (is_watched()) return {};
    const bool wrapped = given.key_set().has_any(c10::DispatchKeySet(
        {c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper}));
    TORCH_CHECK(!wrapped && !given._fw_grad(/*level=*/0).defined(),
                "a stream takes part in no transform and carries no tangent: call the layer "
                "itself, or detach the input");
    TORCH_CHECK(given.is_cpu(), "fused_lstm: expected x on cpu, got ", given.device());
    TORCH_CHECK(is_plain(given), "fused_lstm: expected x as a plain dense tensor, got one of ",
                given.key_set(), ": call the layer itself, and carry the state");
    check_memory(given, "x");
    const NothingBetween guard;
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    if (is_outdated()) pack();
    TORCH_CHECK((given.dim() == 2 || given.dim() == 3) && given.size(-1) == input_size_ &&
                    given.size(-2) == h_.size(1),
                "fused_lstm: expected x of shape [", h_.size(1), ", ", input_size_, "], or [T, ",
                h_.size(1), ", ", input_size_, "], got ", given.sizes());
    const bool one = given.dim() == 2;
    at::Tensor x = as_read(given);
    if (x.scalar_type() != type_) x = x.to(type_);
    if (one) x = x.unsqueeze(0);
    if (x.size(-1) > 1 && x.stride(-1) != 1) x = x.contiguous();
    const int64_t steps = x.size(0), batch = h_.size(1);
    at::Tensor y;
    for (size_t i = 0; i < layers_.size(); ++i) {
      LayerCall& call = layers_[i].call;
      call.steps = Steps(steps, batch);
      call.problem.steps = steps;
      call.problem.rows = steps * batch;
      const bool last = i + 1 == layers_.size();
      y = last ? at::empty({steps, batch, h_.size(2)}, h_.options()) : between(i % 2, steps);
      if (call.problem.rows == 0) continue;
      with_type(type_, [&](auto tag) {
        run_layer<decltype(tag)>(layers_[i], x, h_.select(0, i), c_.select(0, i), y);
      });
      x = y;
    }
    if (given.scalar_type() != type_) y = y.to(given.scalar_type());
    return one ? y.squeeze(0) : y;
  }

  // Between them no other thread's call touches the state.
  void begin_turn() { mutex_.lock(); }
  void end_turn() { mutex_.unlock(); }

  // [L, B, P] and [L, B, H], those that the next call begins with.
  at::Tensor h() const { return h_; }
  at::Tensor c() const { return c_; }

 private:
  bool is_outdated() const {
    if (isa_ != current_isa() || products_ != products_now()) return true;
    for (const StreamLayer& layer : layers_) {
      if (layer.packed_from.empty()) return true;
      for (size_t i = 0; i < layer.given.size(); ++i) {
        if (!layer.packed_from[i].is_of(layer.given[i])) return true;
      }
    }
    return false;
  }

  // Packs all layers whose weights, as they are now, fit the input, each other and the state.
  void pack() {
    for (StreamLayer& layer : layers_) layer.packed_from.clear();
    isa_ = current_isa();
    products_ = products_now();
    for (size_t i = 0; i < layers_.size(); ++i) {
      StreamLayer& layer = layers_[i];
      layer.call = read(i, h_.size(1), i == 0 ? input_size_ : h_.size(2));
      const LstmProblem& p = layer.call.problem;
      TORCH_CHECK(p.hidden_size == c_.size(2) && p.output_size() == h_.size(2),
                  "fused_lstm: expected weights of a layer of hidden_size ", c_.size(2),
                  " that gives ", h_.size(2), " features, got ", p.hidden_size, " and ",
                  p.output_size(), " in layer ", i);
    }
    for (StreamLayer& layer : layers_) {
      for (const at::Tensor& w : layer.given) {
        TORCH_CHECK(is_plain(w),
                    "fused_lstm: expected weights that are plain dense tensors, got one of ",
                    w.key_set());
      }
      std::vector<Mark> marks(layer.given.begin(), layer.given.end());
      with_type(type_, [&](auto tag) { pack_layer<decltype(tag)>(layer); });
      layer.packed_from = std::move(marks);
    }
  }

  // What one step of a layer computes; refuses weights that do not fit its input.
  LayerCall read(size_t i, int64_t batch, int64_t input_size) const {
    const at::Tensor x = at::empty({1, batch, input_size}, given_type_);
    LayerCall call = read_call(x, std::nullopt, std::nullopt, std::nullopt, layers_[i].given,
                               c10::List<bool>({false}), false);
    call.problem.prepacked = true;
    return call;
  }

  // What was converted to float32 is multiplied as it is.
  Products products_now() const {
    return has_kernels(given_type_) ? allowed_products() : Products::exact;
  }
  template <class T>
  const Kernels<T>& kernels() const {
    return kernels_for<T>(h_.size(1), products_);
  }

  // The output of a layer that is not the last: one buffer is read while the other is written.
  at::Tensor between(size_t which, int64_t steps) {
    at::Tensor& buffer = between_[which];
    if (!buffer.defined() || buffer.size(0) < steps) {
      buffer = at::empty({steps, h_.size(1), h_.size(2)}, h_.options());
    }
    return buffer.narrow(0, 0, steps);
  }

  template <class T>
  WeightPanels<T> panels_of(StreamLayer& layer) const {
    const LstmProblem& p = layer.call.problem;
    const GatePanels<T> panels(p, kernels<T>());
    WeightPanels<T> w{};
    for (void* base = nullptr;;) {
      Arena arena(base);
      w.w_x = arena.take<T>(panels.count() * panels.input_size());
      w.w_h = arena.take<T>(panels.count() * panels.hidden_size());
      w.bias = arena.take<Acc<T>>(panels.count() * kernels<T>().width());
      w.w_r = arena.take<T>(panels.projection_count() * panels.projection_size());
      if (base != nullptr) return w;
      base = layer.panels.at_least(arena.used());
    }
  }

  template <class T>
  void pack_layer(StreamLayer& layer) const {
    const LstmProblem& p = layer.call.problem;
    const GatePanels<T> panels(p, kernels<T>());
    const WeightPanels<T> out = panels_of<T>(layer);
    std::vector<at::Tensor> dense;
    for (const at::Tensor& w : layer.given) {
      dense.push_back(as_read(w.detach()).to(type_).contiguous());
    }
    const DirectionWeights<T> w{data<T>(dense[0]),
                                data<T>(dense[1]),
                                p.bias ? data<T>(dense[2]) : nullptr,
                                p.bias ? data<T>(dense[3]) : nullptr,
                                p.proj_size > 0 ? data<T>(dense.back()) : nullptr,
                                false};
    for (int64_t i = 0; i < panels.count(); ++i) {
      panels.pack(w.w_ih, p.input_size, i, out.w_x + i * panels.input_size());
      panels.pack(w.w_hh, p.output_size(), i, out.w_h + i * panels.hidden_size());
      panels.pack_bias(w, i, out.bias + i * kernels<T>().width());
    }
    for (int64_t i = 0; i < panels.projection_count(); ++i) {
      panels.pack_projection(w.w_hr, i, out.w_r + i * panels.projection_size());
    }
  }

  template <class T>
  void run_layer(StreamLayer& layer, const at::Tensor& x, const at::Tensor& h, const at::Tensor& c,
                 const at::Tensor& y) {
    ForwardArgs<T> args{};
    args.kernels = &kernels<T>();
    args.problem = layer.call.problem;
    args.steps = &layer.call.steps;
    args.x = {data<T>(x), x.stride(0), x.stride(1), x.size(1)};
    args.h0 = args.h_n = mutable_data<T>(h);
    args.c0 = args.c_n = mutable_data<T>(c);
    args.panels = panels_of<T>(layer);
    args.y = mutable_data<T>(y);
    last_plans().forward = plan_and_run<T>(
        *args.kernels,
        [&](const CpuMachine& m, const PlanRequest& request) {
          return plan_forward(args.problem, layer.call.steps, m, request);
        },
        [&](const CpuPlan& plan) {
          return forward(args, plan, workspace_.at_least(forward_workspace(args, plan)));
        });
  }

  const at::ScalarType given_type_, type_;
  std::vector<StreamLayer> layers_;
  int64_t input_size_ = 0;
  Isa isa_ = Isa::baseline;
  Products products_ = Products::exact;
  at::Tensor h_, c_, between_[2];
  Memory workspace_;
  mutable std::recursive_mutex mutex_;
};

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<Stream>(m, "Stream", "Layers called a few steps at a time; see fused_lstm.streaming.")
      .def(py::init<const std::vector<std::vector<at::Tensor>>&, int64_t>(), py::arg("weights"),
           py::arg("batch"))
      .def("run", &Stream::run, py::call_guard<py::gil_scoped_release>(), py::arg("x"))
      .def_property_readonly(
          "outdated", py::cpp_function(&Stream::outdated, py::call_guard<py::gil_scoped_release>()))
      .def("begin_turn", &Stream::begin_turn, py::call_guard<py::gil_scoped_release>())
      .def("end_turn", &Stream::end_turn)
      .def_static("takes", &Stream::takes, py::arg("weights"))
      .def_property_readonly("h", &Stream::h)
      .def_property_readonly("c", &Stream::c);
}

}  // namespace fused_lstm::cpu
