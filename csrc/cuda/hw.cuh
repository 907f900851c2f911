// Every hardware instruction that the kernels use, each behind a plain function.
//
// Kernels call nothing of the GPU but what is declared here. With FUSED_LSTM_HOST_EMULATION
// defined, the same names come from the tests' emulator (one fiber per CUDA thread), so that the
// kernel sources run unchanged on a machine without a GPU.
#pragma once

#include <cstdint>

namespace fused_lstm {
namespace cuda {

// 16-bit floats as bare bits: no CUDA header is needed to name them.
struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

}  // namespace cuda
}  // namespace fused_lstm

#ifdef FUSED_LSTM_HOST_EMULATION
#include "emulator.h"
#else

namespace fused_lstm {
namespace cuda {
namespace hw {

// ---- who am I ----

__device__ __forceinline__ int thread() { return threadIdx.x; }
__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }
__device__ __forceinline__ int threads() { return blockDim.x; }
__device__ __forceinline__ int64_t block_x() { return blockIdx.x; }
__device__ __forceinline__ int block_y() { return blockIdx.y; }

// The block's dynamic shared memory, 16-byte aligned.
__device__ __forceinline__ char* shared_memory() {
  extern __shared__ int4 fused_lstm_shared[];
  return reinterpret_cast<char*>(fused_lstm_shared);
}

// ---- numbers ----

__device__ __forceinline__ float to_float(Bfloat16 x) { return __uint_as_float(x.bits << 16); }
__device__ __forceinline__ float to_float(Half x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ __forceinline__ Bfloat16 to_bfloat16(float x) {
  Bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
__device__ __forceinline__ Half to_half(float x) {
  Half y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
// To TF32's 10 mantissa bits, ties away from zero; mma would cut the low bits off instead.
__device__ __forceinline__ float round_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}

// ---- synchronisation inside a block ----

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// ---- tensor cores: c[16][8] += a[16][k] * b[k][8], whole warp ----
//
// With group = lane / 4 and member = lane % 4, a lane holds of c the elements (group, 2 * member),
// (group, 2 * member + 1) and the same two of row group + 8. The 32-bit registers of a hold, of the
// rows group and group + 8, the 4 bytes at 4 * member in the first and then in the second 16 bytes
// of the k tile; those of b hold the same two places of column `group`.

__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_fp16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                         uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- between blocks, through L2 ----
//
// A block publishes data with store_exchange, sync_block, and one thread's release_flag; another
// block's warp sees it after one lane's wait_flag and sync_warp, through load_exchange_16 (which
// reads L2, never a stale L1 line).

template <typename T>
__device__ __forceinline__ void store_exchange(T* to, T value) {
  *to = value;
}
__device__ __forceinline__ void release_flag(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ __forceinline__ void wait_flag(const uint32_t* flag, uint32_t at_least) {
  uint32_t seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
  } while (seen < at_least);
}
__device__ __forceinline__ void load_exchange_16(uint32_t (&to)[4], const void* from) {
  asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from)
               : "memory");
}

// ---- thread-block clusters (compute capability 9.0 and later) ----

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
// Every thread of every block of the cluster arrives, then waits; what was stored to another
// block's shared memory before the arrival is seen after the wait.
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // "aligned" asks for whole warps
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// Stores 8 bytes at `local`'s place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ void store_cluster_8(void* local, uint32_t rank, uint64_t value) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(local));
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(remote), "l"(value) : "memory");
#endif
}

}  // namespace hw
}  // namespace cuda
}  // namespace fused_lstm

#endif  // FUSED_LSTM_HOST_EMULATION
