// Which instruction set runs: the best that the processor has, no better than the cap.
#include "kernels.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "isa_tables.h"

namespace fused_lstm::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};
constexpr const char* kExpected = "expected one of baseline, avx2, avx512, avx512_bf16, got '";

Isa detect() {
#if defined(FUSED_LSTM_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

bool find_isa(const char* name, Isa* isa) {
  for (int i = 0; i < 4; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) {
      *isa = Isa(i);
      return true;
    }
  }
  return false;
}

std::atomic<Isa>& isa_cap() {
  static std::atomic<Isa> cap = [] {
    Isa isa = Isa::avx512_bf16;
    const char* name = std::getenv("FUSED_LSTM_ISA");
    if (name != nullptr && *name != 0 && !find_isa(name, &isa)) {
      throw std::invalid_argument(std::string("FUSED_LSTM_ISA: ") + kExpected + name + "'");
    }
    return isa;
  }();
  return cap;
}

const IsaTables& tables() {
#if defined(FUSED_LSTM_X86)
  switch (current_isa()) {
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

Isa current_isa() {
  static const Isa best = detect();
  const Isa cap = isa_cap().load(std::memory_order_relaxed);
  return cap < best ? cap : best;
}

void set_isa(const std::string& name) {
  Isa isa;
  if (!find_isa(name.c_str(), &isa)) throw std::invalid_argument(kExpected + name + "'");
  isa_cap().store(isa, std::memory_order_relaxed);
}

template <>
const Kernels<float>& kernels<float>() {
  return *tables().f32;
}
template <>
const Kernels<double>& kernels<double>() {
  return *tables().f64;
}

bool native_bfloat16() { return current_isa() == Isa::avx512_bf16; }

#if defined(FUSED_LSTM_X86)
template <>
const Kernels<bfloat16>& kernels<bfloat16>() {
  return *kAvx512Bf16Kernels;
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
