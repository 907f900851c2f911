// Which instruction set runs: the best that the processor has, no better than the cap.
#include "kernels.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "brgemm.h"
#include "isa_tables.h"

namespace fused_lstm::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "avx512_amx"};
constexpr const char* kExpected =
    "expected one of baseline, avx2, avx512, avx512_bf16, avx512_amx, got '";

Isa detect() {
#if defined(FUSED_LSTM_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) {
    return has_matrix_unit() ? Isa::avx512_amx : Isa::avx512_bf16;
  }
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

bool find_isa(const char* name, Isa* isa) {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (std::strcmp(name, kNames[i]) == 0) {
      *isa = Isa(i);
      return true;
    }
  }
  return false;
}

// What a cap leaves. The micro-kernel runs, if slower, on any processor that multiplies bfloat16.
Isa capped(Isa cap) {
  static const Isa best = detect();
  const bool by_name = cap == Isa::avx512_amx && best == Isa::avx512_bf16 && has_brgemm();
  return by_name || cap < best ? cap : best;
}

std::atomic<Isa>& isa_in_force() {
  static std::atomic<Isa> isa = [] {
    const char* name = std::getenv("FUSED_LSTM_ISA");
    if (name == nullptr || *name == 0) return detect();
    Isa cap;
    if (!find_isa(name, &cap)) {
      throw std::invalid_argument(std::string("FUSED_LSTM_ISA: ") + kExpected + name + "'");
    }
    return capped(cap);
  }();
  return isa;
}

const IsaTables& tables() {
#if defined(FUSED_LSTM_X86)
  switch (current_isa()) {
    case Isa::avx512_amx:
    case Isa::avx512_bf16:
    case Isa::avx512:
      return kAvx512Tables;
    case Isa::avx2:
      return kAvx2Tables;
    default:
      break;
  }
#endif
  return kBaselineTables;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[int(isa)]; }

std::vector<std::string> compiled_isas() {
#if defined(FUSED_LSTM_X86)
  return {std::begin(kNames), std::end(kNames)};
#else
  return {kNames[0]};
#endif
}

Isa current_isa() { return isa_in_force().load(std::memory_order_relaxed); }

void set_isa(const std::string& name) {
  Isa cap;
  if (!find_isa(name.c_str(), &cap)) throw std::invalid_argument(kExpected + name + "'");
  isa_in_force().store(capped(cap), std::memory_order_relaxed);
}

bool native_bfloat16() { return current_isa() >= Isa::avx512_bf16; }

namespace {

// So few rows are multiplied sooner than a tile of the matrix unit is filled. The batch decides,
// not the rows of a member: how many threads there are may not change a bit.
constexpr int64_t kFewRows = 4;

bool by_matrix_unit(int64_t batch) { return current_isa() == Isa::avx512_amx && batch > kFewRows; }

}  // namespace

Products products_for(int64_t batch, Products allowed) {
  if (!native_bfloat16()) return Products::exact;
  // Three products of bfloat16 take longer than one of float32, but for the matrix unit.
  if (allowed == Products::split && !by_matrix_unit(batch)) return Products::exact;
  return allowed;
}

template <>
const Kernels<float>& kernels_for<float>([[maybe_unused]] int64_t batch,
                                         [[maybe_unused]] Products allowed) {
#if defined(FUSED_LSTM_X86)
  switch (products_for(batch, allowed)) {
    case Products::split:
      return *kPairTables.matrix_split;
    case Products::rounded:
      return by_matrix_unit(batch) ? *kPairTables.matrix_rounded : *kPairTables.rounded;
    case Products::exact:
      break;
  }
#endif
  return *tables().f32;
}
template <>
const Kernels<double>& kernels_for<double>(int64_t, Products) {
  return *tables().f64;
}
#if defined(FUSED_LSTM_X86)
template <>
const Kernels<bfloat16>& kernels_for<bfloat16>(int64_t batch, Products) {
  return by_matrix_unit(batch) ? *kPairTables.matrix_bf16 : *kPairTables.bf16;
}
#endif

double multiply_adds(DType type, int64_t rounds) {
  if (type == DType::float64) return tables().multiply_adds_f64(rounds);
#if defined(FUSED_LSTM_X86)
  if (type == DType::bfloat16 && native_bfloat16()) return kAvx512Bf16MultiplyAdds(rounds);
#endif
  return tables().multiply_adds_f32(rounds);
}

}  // namespace fused_lstm::cpu
