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
__device__ __forceinline__ uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ uint64_t bits_of(double x) { return __double_as_longlong(x); }
// To TF32's 10 mantissa bits, ties away from zero; mma would cut the low bits off instead.
__device__ __forceinline__ float round_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
}
// To 2^-11 of the value, also near 0.
__device__ __forceinline__ float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// To two units of the last place; 0 and infinity in their places.
__device__ __forceinline__ float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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

// ---- between the lanes of a warp; all 32 must call ----

__device__ __forceinline__ uint32_t shuffle_xor(uint32_t value, int lanes) {
  return __shfl_xor_sync(0xffffffff, value, lanes);
}
// Whether any lane's flag is set; asked while polling.
__device__ __forceinline__ bool any_lane(bool flag) { return __any_sync(0xffffffff, flag); }
// Of an 8 x 8 matrix of 16-bit elements, of which a lane brings (group, 2 * member) and the next in
// the row, the transposed one in the same places.
__device__ __forceinline__ uint32_t transpose_16(uint32_t word) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

// ---- between blocks, through L2 ----
//
// Relaxed: single words arrive whole, and in no order but what a fence gives. Relaxed loads read
// L2, never a stale line of L1. A word is loaded in the size in which it was stored: the memory
// model says nothing of accesses of mixed sizes, and takes a vector for its elements.

__device__ __forceinline__ void store_gpu(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ __forceinline__ void store_gpu(uint64_t* to, uint64_t value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ __forceinline__ void load_gpu(uint32_t (&to)[4], const void* from) {
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "l"(from)
               : "memory");
}
__device__ __forceinline__ void load_gpu(uint64_t (&to)[2], const void* from) {
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];"
               : "=l"(to[0]), "=l"(to[1])
               : "l"(from)
               : "memory");
}
// What this thread stored before is there for whoever sees what it stores after, and what it loads
// after is no older than what it loaded before.
__device__ __forceinline__ void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// ---- thread-block clusters (compute capability 9.0 and later) ----

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}
// Every thread of every block of the cluster; what any stored before is seen by all after.
__device__ __forceinline__ void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // "aligned" asks for whole warps
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// Where `local` of this block's shared memory lies in that of block `rank` of the cluster.
__device__ __forceinline__ uint32_t cluster_address(const void* local, uint32_t rank) {
  uint32_t remote = 0;
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(local));
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
#endif
  return remote;
}
// As between blocks through L2, to `local`'s place in the shared memory of block `rank`.
__device__ __forceinline__ void store_cluster(uint32_t* local, uint32_t rank, uint32_t value) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.relaxed.cluster.shared::cluster.u32 [%0], %1;" ::"r"(cluster_address(local, rank)),
      "r"(value)
      : "memory");
#endif
}
__device__ __forceinline__ void store_cluster(uint64_t* local, uint32_t rank, uint64_t value) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.relaxed.cluster.shared::cluster.u64 [%0], %1;" ::"r"(cluster_address(local, rank)),
      "l"(value)
      : "memory");
#endif
}
// From this block's shared memory, where other blocks store.
__device__ __forceinline__ void load_cluster(uint32_t (&to)[4], const void* from) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from));
  asm volatile("ld.relaxed.cluster.shared::cta.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
#endif
}
__device__ __forceinline__ void load_cluster(uint64_t (&to)[2], const void* from) {
#if __CUDA_ARCH__ >= 900
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(from));
  asm volatile("ld.relaxed.cluster.shared::cta.v2.u64 {%0, %1}, [%2];"
               : "=l"(to[0]), "=l"(to[1])
               : "r"(address)
               : "memory");
#endif
}
// Sets all bits of 16 bytes of this block's shared memory, where other blocks store words later.
template <typename Word>
__device__ __forceinline__ void empty_shared_16(void* at) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(at));
  if (sizeof(Word) == 8) {
    asm volatile("st.shared.v2.u64 [%0], {%1, %1};" ::"r"(address), "l"(~uint64_t{0}) : "memory");
  } else {
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(~uint32_t{0})
                 : "memory");
  }
}
// As fence_gpu, of shared memory and within the cluster alone: it does not wait for stores to
// global memory, as fence.acq_rel.cluster does.
__device__ __forceinline__ void fence_cluster_shared() {
#if __CUDA_ARCH__ >= 900
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 8)
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
#else
  asm volatile("fence.acq_rel.cluster;" ::: "memory");
#endif
#endif
}

// ---- for measuring and for finding a hang (trace.cuh) ----

// Between two looks at memory of the host, which take a microsecond each.
constexpr int kSpinsPerLook = 1024;
__device__ __forceinline__ int64_t clock() { return clock64(); }
__device__ __forceinline__ void store_system(int64_t* to, int64_t value) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}
__device__ __forceinline__ void trap() {
  __threadfence_system();
  __trap();
}

}  // namespace hw
}  // namespace cuda
}  // namespace fused_lstm

#endif  // FUSED_LSTM_HOST_EMULATION
