#include "probes.h"

#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "problem.h"
#include "team.h"
#include "workspace.h"

namespace fused_lstm::cpu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTrials = 5;
constexpr double kShortest = 5e-3;  // seconds of one trial: far above a fork's cost

// The rate of f(rank), which returns what it did, run by all members until `seconds` have passed;
// by each at least once, as on a busy machine a team may take longer than that to begin.
template <class F>
double rate_of(int threads, double seconds, const F& f) {
  std::vector<double> done(size_t(threads) * 8);  // a cache line each
  const Clock::time_point start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  const auto run_for_a_while = [&](int rank) {
    double& mine = done[size_t(rank) * 8];
    do {
      mine += f(rank);
    } while (elapsed() < seconds);
  };
  if (!run_team(threads, run_for_a_while, /*probe=*/true)) run_for_a_while(0);
  const double taken = elapsed();
  return std::accumulate(done.begin(), done.end(), 0.0) / taken;
}

template <class F>
double best_rate(int threads, const F& f, int trials = kTrials) {
  double best = 0;
  for (int trial = 0; trial < trials; ++trial) {
    best = std::max(best, rate_of(threads, kShortest, f));
  }
  return best;
}

template <class T>
double own_panel_rate(int64_t rows, int64_t depth, int64_t panels, int threads) {
  const Kernels<T>& k = kernels_for<T>(rows);
  const int64_t width = k.width(), size = k.panel_size(depth);
  const T one = from_acc<T>(Acc<T>(1));
  const std::vector<T> a(rows * depth, one), b(size_t(panels * size) * threads, one);
  std::vector<Acc<T>> c(rows * width * threads);
  const double rate = best_rate(threads, [&](int rank) {
    PanelGemm<T, Acc<T>> g{};
    g.rows = rows;
    g.k = depth;
    g.a = {a.data(), depth};
    g.c = {c.data() + rank * rows * width, width};
    g.cols = int(width);
    for (int64_t i = 0; i < panels; ++i) {
      g.panel = b.data() + (rank * panels + i) * size;
      g.ahead = i + 1 < panels ? g.panel + size : nullptr;
      k.gemm(g);
    }
    if (k.release != nullptr) k.release();
    return 2.0 * rows * width * depth * panels;
  });
  return rate * 1e-9;
}

template <class T>
double onednn_rate(int64_t rows, int64_t columns, int64_t depth, int64_t panels,
                   at::ScalarType type, int threads, int trials) {
  namespace blas = at::native::cpublas;
  const bool packed = type != at::kFloat;
  if (packed && !blas::could_pack(type)) return 0;
  const at::Tensor a = at::ones({rows, depth}, type);
  const at::Tensor b = at::ones({threads, panels, depth, columns}, type);  // of equal entries
  const at::Tensor c = at::ones({threads, rows, columns}, at::kFloat);
  const T* a_data = a.const_data_ptr<T>();
  const T* b_data = b.const_data_ptr<T>();
  float* c_data = c.mutable_data_ptr<float>();
  const auto multiply = [&](int rank) {
    for (int64_t i = 0; i < panels; ++i) {
      blas::brgemm(rows, columns, depth, depth, columns, columns, false, a_data,
                   b_data + (rank * panels + i) * depth * columns, c_data + rank * rows * columns,
                   packed);
    }
    blas::brgemm_release(packed);
    return 2.0 * double(rows) * double(columns) * double(depth) * double(panels);
  };
  return 1e-9 * best_rate(threads, multiply, trials);
}

}  // namespace

double read_rate(int64_t bytes, int threads) {
  const Kernels<float>& k = kernels_for<float>(1);
  constexpr int64_t kDepth = 256;
  const int64_t width = k.width(), size = width * kDepth;
  const int64_t panels = std::max<int64_t>(1, bytes / int64_t(sizeof(float)) / size / threads);
  const std::vector<float> weights(size * panels * threads, 1.0f), row(kDepth, 1.0f);
  std::vector<float> sums(width * threads);
  return 1e-9 * best_rate(threads, [&](int rank) {
           PanelGemm<float, float> g{};
           g.rows = 1;
           g.k = kDepth;
           g.a = {row.data(), kDepth};
           g.c = {sums.data() + rank * width, width};
           g.cols = int(width);
           for (int64_t i = 0; i < panels; ++i) {
             g.panel = weights.data() + (rank * panels + i) * size;
             k.gemm(g);
           }
           return double(panels * size * int64_t(sizeof(float)));
         });
}

double multiply_add_peak(int threads, const std::string& dtype) {
  const DType type = dtype_named(dtype);
  constexpr int64_t kRounds = 100000;
  return 2e-9 * best_rate(threads, [&](int) { return multiply_adds(type, kRounds); });
}

double multiply_add_rate(int threads, double seconds) {
  constexpr int64_t kRounds = 10000;  // some 30 us
  return 2e-9 *
         rate_of(threads, seconds, [](int) { return multiply_adds(DType::float32, kRounds); });
}

double brgemm_rate(int64_t rows, int64_t columns, int64_t depth, int64_t panels,
                   const std::string& dtype, int threads, int trials) {
  switch (dtype_named(dtype)) {
    case DType::float32:
      return onednn_rate<float>(rows, columns, depth, panels, at::kFloat, threads, trials);
    case DType::bfloat16:
      return onednn_rate<at::BFloat16>(rows, columns, depth, panels, at::kBFloat16, threads,
                                       trials);
    case DType::float16:
      return onednn_rate<at::Half>(rows, columns, depth, panels, at::kHalf, threads, trials);
    default:
      return 0;
  }
}

double panel_rate(int64_t rows, int64_t depth, int64_t panels, const std::string& dtype,
                  int threads) {
  const DType type = dtype_named(dtype);
  if (type == DType::float64) return own_panel_rate<double>(rows, depth, panels, threads);
#if defined(FUSED_LSTM_X86)
  if (type == DType::bfloat16 && native_bfloat16()) {
    return own_panel_rate<bfloat16>(rows, depth, panels, threads);
  }
#endif
  return own_panel_rate<float>(rows, depth, panels, threads);
}

}  // namespace fused_lstm::cpu
