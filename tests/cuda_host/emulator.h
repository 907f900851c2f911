// The hardware functions of csrc/cuda/hw.cuh on the host, for tests: one fiber per CUDA thread.
//
// All blocks of a grid are resident together. A fiber runs until it must wait (block barrier, warp
// collective, cluster barrier, polling); which one runs next depends on the seed. What hardware
// leaves open is made to happen late on purpose:
//   * shared memory starts as NaN bytes and is allocated to the byte;
//   * stores to other blocks are kept in the thread's store buffer. They reach memory at a time and
//     in an order that the seed chooses, perhaps only when nothing else can go on; a fence and
//     sync_cluster send off what is in the buffer, and stores to one address keep their order;
//   * polled loads may be stale: they return any value that a word had, but none older than what
//   the
//     thread has loaded there before, and none older than what the memory model lets it know of.
//     A thread learns of stores by a barrier, and by its fence after it has loaded what another
//     thread stored after a fence of its own.
// A warp collective that not all 32 lanes of the warp call alike, a wait that nothing can end, a
// store to the shared memory of a block that has ended, two threads' stores to one word that are in
// no order, and a polled load that is not of the size of the stores stop the run with an Error.
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
// Halves of every fence that are left out.
extern bool no_release, no_acquire;
const std::vector<Site>& sites();
// True if this call is to do nothing.
bool omit(Site site);

// memory.cpp: a store on its way to other blocks, and a polled load.
void buffer_store(void* to, const void* from, size_t bytes, int line);
void load_word(void* to, const void* from, size_t bytes);
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
void fence_cluster_shared(EMULATOR_SITE);
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
// As far off as hardware may be, 2^-11 of the value, to either side.
inline float tanh_approx(float x) {
  const float error = bits_of(x) % 2 ? 1.0f / 2048 : -1.0f / 2048;
  return std::tanh(x) * (1 + error);
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
uint32_t transpose_16(uint32_t word);

// ---- between blocks ----

template <typename Word>
void store_gpu(Word* to, Word value, int line = __builtin_LINE()) {
  emulator::buffer_store(to, &value, sizeof(Word), line);
}
template <typename Word, int n>
void load_gpu(Word (&to)[n], const void* from) {
  emulator::check_aligned(from, 16);
  for (int i = 0; i < n; ++i) {
    emulator::load_word(&to[i], static_cast<const Word*>(from) + i, sizeof(Word));
  }
}
template <typename Word>
void store_cluster(Word* local, uint32_t rank, Word value, int line = __builtin_LINE()) {
  emulator::buffer_store(emulator::cluster_address(local, rank), &value, sizeof(Word), line);
}
template <typename Word, int n>
void load_cluster(Word (&to)[n], const void* from) {
  load_gpu(to, from);
}
template <typename Word>
void empty_shared_16(void* at, int line = __builtin_LINE()) {
  const Word empty = ~Word{0};
  for (size_t i = 0; i < 16 / sizeof(Word); ++i) {
    emulator::buffer_store(static_cast<Word*>(at) + i, &empty, sizeof(Word), line);
  }
}

// ---- for measuring and for finding a hang ----

constexpr int kSpinsPerLook = 1;
int64_t clock();
inline void store_system(int64_t* to, int64_t value) { *to = value; }
inline void trap() { throw emulator::Error("trap"); }

}  // namespace hw
}  // namespace cuda
}  // namespace fused_lstm
