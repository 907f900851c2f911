#include "machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <tuple>

#include "fork.h"
#include "team.h"
#include "workspace.h"

namespace fused_lstm::cpu {
namespace {

using Clock = std::chrono::steady_clock;

bool run_probe(int team, const std::function<void(int rank)>& body) {
  return run_team(team, body, /*probe=*/true);
}

// The fastest of several short trials counts: everything that disturbs makes slower, and on a busy
// machine it is a matter of luck whether a trial is disturbed.
constexpr double kWhile = 1e6;           // ns to go on for, and
constexpr double kTooLong = 4 * kWhile;  // after which even too few trials are left at that
constexpr int kTrials = 5;               // otherwise, at least
constexpr int kBarriers = 5;             // in a row

double elapsed_ns(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

// Nanoseconds of f(), at best. The first run only warms the caches.
template <class F>
double fastest_ns(const F& f) {
  f();
  double best = 0;
  const Clock::time_point begin = Clock::now();
  for (int trial = 0; elapsed_ns(begin) < (trial < kTrials ? kTooLong : kWhile); ++trial) {
    const Clock::time_point start = Clock::now();
    f();
    const double ns = elapsed_ns(start);
    if (trial == 0 || ns < best) best = ns;
  }
  return best;
}

// Bytes of the first core's cache of this level, as Linux tells them; `otherwise` where it does
// not.
int64_t cache_bytes(int level, int64_t otherwise) {
  const std::string caches = "/sys/devices/system/cpu/cpu0/cache/index";
  for (int i = 0; i < 8; ++i) {
    int found = 0;
    int64_t size = 0;
    char unit = 0;
    std::ifstream(caches + std::to_string(i) + "/level") >> found;
    std::ifstream(caches + std::to_string(i) + "/size") >> size >> unit;
    if (found == level && size > 0) return size * (unit == 'M' ? 1 << 20 : 1 << 10);
  }
  return otherwise;
}

// Runs the kernels on memory of its own, all ones.
template <class T>
class KernelProbe {
 public:
  // Memory for `weight_bytes` of panels, and for `team` threads that sweep over them.
  KernelProbe(const Kernels<T>& kernels, int64_t weight_bytes, int team)
      : k_(kernels),
        count_(std::max({kRows, k_.width(), 2 * int64_t(k_.tile_rows)})),
        weights_(std::max<int64_t>(weight_bytes, panel_bytes()) / int64_t(sizeof(T)), one()),
        rows_(count_ * kDepth, one()),
        operands_(k_.rows_size(count_, kDepth), one()),
        sums_(std::max<int64_t>(count_, team) * k_.width(), Acc<T>(1)),
        state_(count_ * k_.lanes, Acc<T>(1)),
        gates_(count_ * k_.width(), one()),
        operand_rows_(k_.operands({rows_.data(), kDepth}, count_, kDepth, operands_.data())) {}

  int64_t panel_bytes() const { return k_.panel_size(kDepth) * int64_t(sizeof(T)); }

  // One vector multiply-add of full tiles.
  double multiply_ns() {
    const int rows = 2 * k_.tile_rows;
    const double vectors = 4.0 * double(kDepth * k_.parts / k_.pair) * rows;
    return fastest_ns([&] { multiply(rows, 0, 0); }) / vectors;
  }

  // Bytes a nanosecond and thread of one row against panels one after the other, `bytes` of them:
  // what the cache delivers that they fit in. The threads begin at different ones.
  double rate(int64_t bytes, int team) {
    const int64_t panels = std::max<int64_t>(1, bytes / panel_bytes());
    const double ns = fastest_ns([&] {
      run_probe(team, [&](int rank) {
        for (int64_t i = 0; i < panels; ++i) multiply(1, (i + rank * panels / team) % panels, rank);
      });
    });
    return double(panels * panel_bytes()) / ns;
  }

  // Gates, c and h of one vector of units of one row.
  double gate_ns() {
    GateStep<T> g{};
    g.rows = count_;
    g.units = k_.lanes;
    g.hidden = k_.lanes;
    g.init = sums_.data();
    g.init_stride = k_.width();
    g.c_prev = {state_.data(), k_.lanes};
    g.c_next = {state_.data(), k_.lanes};
    g.h_next = {rows_.data(), kDepth};
    g.gates = {gates_.data(), k_.width()};
    return fastest_ns([&] { k_.gate_step(g); }) / count_;
  }

  double gradient_ns() {
    GateGradient<T> g{};
    g.rows = count_;
    g.units = k_.lanes;
    g.hidden = k_.lanes;
    g.gates = {gates_.data(), k_.width()};
    g.c = g.c_prev = g.dh = {sums_.data(), k_.width()};
    g.dy = {gates_.data(), k_.width()};
    g.dc = {state_.data(), k_.lanes};
    g.dgates = {rows_.data(), kDepth};
    return fastest_ns([&] { k_.gate_gradient(g); }) / count_;
  }

  // One vector of weights into a panel.
  double pack_ns() {
    const int n = k_.lanes;
    const PackTransposed<T> pack{rows_.data(), kDepth, kDepth, 0, n, {n, n, n, n}, weights_.data()};
    return fastest_ns([&] { k_.pack_transposed(pack); }) /
           (4.0 * double(kDepth * k_.parts / k_.pair));
  }

 private:
  static constexpr int64_t kDepth = 256;  // of a panel: 64 KiB of AVX-512 float32, inside every L2
  static constexpr int64_t kRows = 64;    // and no fewer than a panel's columns or two tiles' rows

  static T one() { return from_acc<T>(Acc<T>(1)); }

  void multiply(int64_t rows, int64_t panel, int64_t first_row) {
    PanelGemm<T, Acc<T>> g{};
    g.rows = rows;
    g.k = kDepth;
    g.a = operand_rows_;
    g.panel = weights_.data() + panel * k_.panel_size(kDepth);
    g.c = {sums_.data() + first_row * k_.width(), k_.width()};
    g.cols = int(k_.width());
    k_.gemm(g);
  }

  const Kernels<T>& k_;
  const int64_t count_;  // of rows
  std::vector<T> weights_, rows_, operands_;
  std::vector<Acc<T>> sums_, state_;
  std::vector<T> gates_;
  const Rows<const T> operand_rows_;
};

// A measurement beyond all reason was disturbed all along, and what is usual is taken instead: a
// process that begins on a busy machine may live on when it is not.
double plausible(double measured, double expected) {
  return measured > expected / 20 && measured < expected * 8 ? measured : expected;
}

double barrier_ns(int team) {
  double best = 0;
  std::atomic<bool> enough{false};
  Barrier barrier(team);
  const Clock::time_point begin = Clock::now();
  run_probe(team, [&](int rank) {
    for (;;) {
      barrier.wait();
      if (enough.load(std::memory_order_relaxed)) return;
      const Clock::time_point start = Clock::now();
      for (int i = 0; i < kBarriers; ++i) barrier.wait();
      const double ns = elapsed_ns(start);
      if (rank != 0) continue;
      if (best == 0 || ns < best) best = ns;
      if (elapsed_ns(begin) > kWhile) enough.store(true, std::memory_order_relaxed);
    }
  });
  return best / kBarriers;
}

double fork_ns(int team) {
  return fastest_ns([&] { run_probe(team, [](int) {}); });
}

// Weights that do not fit a core's own cache, and fit what cores share.
constexpr int64_t shared_sample(int64_t l2_bytes) { return 3 * l2_bytes; }

template <class T>
void measure_kernels(const Kernels<T>& kernels, CpuMachine* m) {
  const CpuMachine usual;
  KernelProbe<T> probe(kernels, shared_sample(m->l2_bytes), 1);
  m->multiply_ns = plausible(probe.multiply_ns(), usual.multiply_ns);
  m->gate_ns = plausible(probe.gate_ns(), usual.gate_ns);
  m->gradient_ns = plausible(probe.gradient_ns(), usual.gradient_ns);
  m->pack_ns = plausible(probe.pack_ns(), usual.pack_ns);
  m->l2_rate = plausible(probe.rate(m->l2_bytes / 2, 1), usual.l2_rate);
  m->shared_rate = plausible(probe.rate(shared_sample(m->l2_bytes), 1), usual.shared_rate);
  if (kernels.release != nullptr) kernels.release();
}

// What a team costs, whatever it computes.
void measure_teams(CpuMachine* m) {
  const CpuMachine usual;
  const int most = m->threads;
  KernelProbe<float> probe(kernels_for<float>(1), shared_sample(m->l2_bytes), most);
  auto by_team = [&](double expected, const auto& measure) {
    const double two = plausible(measure(2), expected);
    return ByTeam{two, most > 2 ? plausible(measure(most), expected) : two, most};
  };
  m->barrier_ns = by_team(usual.barrier_ns.two, [](int team) { return barrier_ns(team); });
  m->fork_ns = by_team(usual.fork_ns.two, [](int team) { return fork_ns(team); });
  m->shared_rates = by_team(usual.shared_rate,
                            [&](int team) { return probe.rate(shared_sample(m->l2_bytes), team); });
}

std::mutex measuring;
const int at_fork = free_over_fork<measuring>();

// What does not depend on the kernels, measured once for all of them. Holds `measuring`.
const CpuMachine& without_kernels(int threads) {
  static std::map<int, CpuMachine> known;
  auto found = known.find(threads);
  if (found == known.end()) {
    CpuMachine m;
    m.threads = threads;
    m.l2_bytes = cache_bytes(2, m.l2_bytes);
    m.shared_bytes = cache_bytes(3, m.shared_bytes);
    if (threads > 1) measure_teams(&m);
    found = known.emplace(threads, m).first;
  }
  return found->second;
}

// Until what was measured is measured again; then twice as long, and so on.
constexpr auto kFirstPause = std::chrono::seconds(1);

struct Known {
  CpuMachine machine;
  Clock::duration pause = kFirstPause;
  Clock::time_point again = Clock::now() + pause;
};

// Holds `measuring`.
void measure_again(Known* known) {
  CpuMachine again = known->machine;
  measure_teams(&again);
  keep_best_teams(again, &known->machine);
  known->pause *= 2;
  known->again = Clock::now() + known->pause;
}

template <class T>
CpuMachine measure(const Kernels<T>& kernels, int threads) {
  CpuMachine m = without_kernels(threads);
  m.lanes = kernels.lanes;
  m.pair = kernels.pair / kernels.parts;
  m.vector_bytes = int(kernels.lanes * sizeof(Acc<T>));
  m.tile_rows = kernels.tile_rows;
  m.few_rows = kernels.few_rows != nullptr;
  measure_kernels(kernels, &m);
  return m;
}

}  // namespace

double ByTeam::at(int threads) const {
  if (threads <= 2 || most <= 2) return two;
  const double share = std::min(1.0, std::log2(threads / 2.0) / std::log2(most / 2.0));
  return two + (all - two) * share;
}

bool may_be_disturbed(const CpuMachine& m) {
  const CpuMachine usual;
  return m.threads > 1 &&
         (m.shared_rates.two < 0.6 * m.shared_rate || m.barrier_ns.two > 3 * usual.barrier_ns.two);
}

void keep_best_teams(const CpuMachine& again, CpuMachine* m) {
  const auto less = [](const ByTeam& other, ByTeam* known) {
    known->two = std::min(known->two, other.two);
    known->all = std::min(known->all, other.all);
  };
  less(again.barrier_ns, &m->barrier_ns);
  less(again.fork_ns, &m->fork_ns);
  m->shared_rates.two = std::max(m->shared_rates.two, again.shared_rates.two);
  m->shared_rates.all = std::max(m->shared_rates.all, again.shared_rates.all);
}

template <class T>
CpuMachine machine(const Kernels<T>& kernels, int threads) {
  static std::map<std::pair<const void*, int>, Known> all;
  const std::lock_guard<std::mutex> lock(measuring);
  const std::pair<const void*, int> key{&kernels, threads};
  auto found = all.find(key);
  if (found == all.end()) found = all.emplace(key, Known{measure(kernels, threads)}).first;
  Known& known = found->second;
  if (may_be_disturbed(known.machine) && Clock::now() >= known.again) measure_again(&known);
  return known.machine;
}

template CpuMachine machine<float>(const Kernels<float>&, int);
template CpuMachine machine<double>(const Kernels<double>&, int);
#if defined(FUSED_LSTM_X86)
template CpuMachine machine<bfloat16>(const Kernels<bfloat16>&, int);
#endif

namespace {

// Every fact by name; f(name, value) gets a reference to it.
template <class Machine, class F>
void for_facts(Machine& m, const F& f) {
  f("threads", m.threads);
  f("lanes", m.lanes);
  f("pair", m.pair);
  f("vector_bytes", m.vector_bytes);
  f("tile_rows", m.tile_rows);
  f("few_rows", m.few_rows);
  f("multiply_ns", m.multiply_ns);
  f("gate_ns", m.gate_ns);
  f("gradient_ns", m.gradient_ns);
  f("pack_ns", m.pack_ns);
  f("l2_bytes", m.l2_bytes);
  f("shared_bytes", m.shared_bytes);
  f("l2_rate", m.l2_rate);
  f("shared_rate", m.shared_rate);
  f("shared_rate_two", m.shared_rates.two);
  f("shared_rate_all", m.shared_rates.all);
  f("memory_rate", m.memory_rate);
  f("barrier_ns_two", m.barrier_ns.two);
  f("barrier_ns_all", m.barrier_ns.all);
  f("fork_ns_two", m.fork_ns.two);
  f("fork_ns_all", m.fork_ns.all);
  f("most_threads", m.fork_ns.most);  // those that "all" was measured with
}

}  // namespace

std::vector<std::pair<std::string, double>> list_facts(const CpuMachine& machine) {
  std::vector<std::pair<std::string, double>> facts;
  for_facts(machine,
            [&](const char* name, auto& value) { facts.emplace_back(name, double(value)); });
  return facts;
}

bool set_fact(CpuMachine& machine, const std::string& name, double value) {
  bool found = false;
  for_facts(machine, [&](const char* each, auto& fact) {
    if (name != each) return;
    fact = std::decay_t<decltype(fact)>(value);
    found = true;
  });
  machine.barrier_ns.most = machine.shared_rates.most = machine.fork_ns.most;
  return found;
}

}  // namespace fused_lstm::cpu
