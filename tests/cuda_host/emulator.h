// The hardware functions of csrc/cuda/hw.cuh on the host, for tests: one fiber per CUDA thread.
//
// All blocks of a grid are resident together. A fiber runs until it must wait (block barrier, warp
// collective, cluster barrier, polling); which one runs next depends on the seed. What hardware
// leaves open is made to happen late on purpose:
//   * shared memory starts as NaN bytes and is allocated to the byte;
//   * store_gpu and store_cluster are kept in the thread's store buffer. They reach memory at a
//   time
//     and in an order that the seed chooses, perhaps only when nothing else can go on; a fence and
//     sync_cluster send off what is in the buffer, and stores to one address keep their order.
// A warp collective that not all 32 lanes of the warp call alike, a wait that nothing can end, and
// a store to the shared memory of a block that has ended stop the run with an Error.
//
// Every synchronising function knows the source line that calls it, its site. One site can be left
// out of a run, to see the tests fail.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};

namespace emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Grid {
  int x = 1, y = 1;   // blocks
  int threads = 32;   // per block, a multiple of 32
  int cluster = 1;    // blocks (along x) per cluster
  size_t shared = 0;  // bytes of shared memory per block
  uint64_t seed = 0;  // of the schedule
};

// Runs `body` as every thread of the grid; returns when all of them have. Throws Error.
void launch(const Grid& grid, const std::function<void()>& body);

// Warp collectives meet here: the last lane to arrive runs `act` on the arguments of all 32.
void meet_warp(const char* name, void* arguments, void (*act)(void* const* lanes));

// A synchronising call in a kernel. Sites are numbered in the order in which they are first
// reached; the calls of site number `omitted` (-1: none) do nothing.
struct Site {
  const char* file;
  int line;
};
extern int omitted;
const std::vector<Site>& sites();
// True if this call is to do nothing.
bool omit(Site site);

void buffer_store(void* to, const void* from, size_t bytes, int line);
// Where `local` of this block's shared memory lies in that of block `rank` of its cluster.
void* cluster_address(void* local, uint32_t rank);
void check_aligned(const void* address, size_t bytes);

}  // namespace emulator

namespace fused_lstm {
namespace cuda {
namespace hw {

int thread();
int threads();
int64_t block_x();
int block_y();
inline int lane() { return thread() % 32; }
inline int warp() { return thread() / 32; }
char* shared_memory();

#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
void sync_block(EMULATOR_SITE);
void sync_warp(EMULATOR_SITE);
void fence_gpu(EMULATOR_SITE);
void sync_cluster(EMULATOR_SITE);
#undef EMULATOR_SITE
uint32_t cluster_rank();

// ---- numbers ----

inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline uint64_t bits_of(double x) {
  uint64_t u;
  std::memcpy(&u, &x, 8);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
inline float to_float(Bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
inline Bfloat16 to_bfloat16(float x) {
  if (std::isnan(x)) return {0x7fff};
  const uint32_t u = bits_of(x);
  return {static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
inline float to_float(Half x) {
  const int exponent = (x.bits >> 10) & 31;
  const int fraction = x.bits & 1023;
  float y = exponent == 31 ? (fraction ? NAN : INFINITY)
                           : std::ldexp(static_cast<float>(exponent ? fraction + 1024 : fraction),
                                        (exponent ? exponent : 1) - 25);
  return x.bits >> 15 ? -y : y;
}
inline Half to_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7fff};
  const float magnitude = std::fabs(x);
  if (magnitude == 0.0f) return {sign};
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  if (exponent < -13) exponent = -13;  // subnormal halves share the smallest exponent
  // An integer of at most 11 bits, ties to even; adding it to the exponent field carries over.
  const int scaled = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  return {static_cast<uint16_t>(sign | (((exponent + 13) << 10) + scaled))};
}
inline float round_tf32(float x) {
  if (!std::isfinite(x)) return x;
  return float_of((bits_of(x) + 0x1000) & 0xffffe000);
}
inline float exp2(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }

// ---- tensor cores, by the fragment layouts of the PTX manual ----

struct MmaArguments {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

// `element(word, i)` is the i-th of the `per_word` numbers in one 32-bit register.
template <int per_word, float (*element)(uint32_t, int)>
void mma_warp(void* const* lanes) {
  constexpr int k = per_word * 8;
  float a[16][k], b[k][8];
  const auto of = [&](int lane) { return static_cast<const MmaArguments*>(lanes[lane]); };
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < per_word; ++i) {
      for (int half = 0; half < 2; ++half) {
        const int column = half * per_word * 4 + member * per_word + i;
        a[group][column] = element(of(lane)->a[half * 2], i);
        a[group + 8][column] = element(of(lane)->a[half * 2 + 1], i);
        b[column][group] = element(of(lane)->b[half], i);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      for (int j = 0; j < k; ++j) of(lane)->c[i] += a[row][j] * b[j][column];
    }
  }
}

inline float bf16_element(uint32_t word, int i) {
  return to_float(Bfloat16{static_cast<uint16_t>(word >> (16 * i))});
}
inline float fp16_element(uint32_t word, int i) {
  return to_float(Half{static_cast<uint16_t>(word >> (16 * i))});
}
inline float tf32_element(uint32_t word, int) { return float_of(word & 0xffffe000); }

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  MmaArguments arguments{c, a, b};
  emulator::meet_warp("mma_bf16", &arguments, mma_warp<2, bf16_element>);
}
inline void mma_fp16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  MmaArguments arguments{c, a, b};
  emulator::meet_warp("mma_fp16", &arguments, mma_warp<2, fp16_element>);
}
inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  MmaArguments arguments{c, a, b};
  emulator::meet_warp("mma_tf32", &arguments, mma_warp<1, tf32_element>);
}

// ---- between lanes ----

uint32_t shuffle_xor(uint32_t value, int lanes);
// Lanes that are told to poll again sleep until some store has reached memory.
bool any_lane(bool flag);

// ---- between blocks ----

template <typename Word>
void store_gpu(Word* to, Word value, int line = __builtin_LINE()) {
  emulator::buffer_store(to, &value, sizeof(Word), line);
}
inline void load_gpu_16(uint64_t (&to)[2], const void* from) {
  emulator::check_aligned(from, 16);
  std::memcpy(to, from, 16);
}
template <typename Word>
void store_cluster(Word* local, uint32_t rank, Word value, int line = __builtin_LINE()) {
  emulator::buffer_store(emulator::cluster_address(local, rank), &value, sizeof(Word), line);
}
inline void load_cluster_16(uint64_t (&to)[2], const void* from) { load_gpu_16(to, from); }

}  // namespace hw
}  // namespace cuda
}  // namespace fused_lstm
