// Memory that is used again, as it came from the system.
//
// A training step allocates what the one before has freed. Megabytes from malloc come as pages that
// the system clears first, half a microsecond to several for each 4 KiB: a fifth of a step that
// computes for 18 ms.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstddef>
#include <cstdint>

#include "huge_pages.h"

namespace fused_lstm::cpu {

// Whether a block serves only who asks for its very size: so the sanitizer sees who writes beyond
// what he asked for.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kExactSize = true;
#else
constexpr bool kExactSize = false;
#endif

struct MemoryBlock {
  explicit MemoryBlock(size_t bytes)
      : size(bytes), memory(c10::GetCPUAllocator()->allocate(bytes + kLine)) {
    prefer_huge_pages(memory.get(), bytes);
  }

  bool holds(size_t bytes) const { return kExactSize ? size == bytes : size >= bytes; }
  // From a cache line on, `size` bytes.
  void* begin() const {
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    return reinterpret_cast<void*>((address + kLine - 1) / kLine * kLine);
  }

  static constexpr size_t kLine = 64;
  const size_t size;
  const c10::DataPtr memory;
};

}  // namespace fused_lstm::cpu
