// Huge pages behind large memory that has just been allocated.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_lstm::cpu {

// To touch 2 MiB for the first time takes 512 page faults of half a microsecond to a microsecond,
// or one that clears as much: at 64 x 100 steps and H = 512 a tenth of the forward pass went into
// faults. Below a few pages it does not pay: the C library hands small blocks out again as they
// are.
inline void prefer_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 2 << 20, kLeast = 4 * kPage;
  if (bytes < kLeast) return;
  const auto address = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t begin = (address + kPage - 1) / kPage * kPage;
  const uintptr_t end = (address + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refused: as it was
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace fused_lstm::cpu
