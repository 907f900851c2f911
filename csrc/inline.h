// Functions that have to disappear into their callers: in the kernels of one instruction set, a
// copy left outside would be compiled for another.
#pragma once

#if defined(__CUDACC__)
#define FUSED_LSTM_INLINE __host__ __device__ __forceinline__
#else
#define FUSED_LSTM_INLINE inline __attribute__((always_inline))
#endif
