// The workspace of a call, which the next call gets again.
#pragma once

#include <cstddef>
#include <memory>

namespace fused_lstm::cpu {

struct MemoryBlock;

// `bytes` of memory of any content, from a cache line on. What the last call gave back is handed
// out again if it is large enough, and freed before a larger one is allocated: calls one after the
// other have one workspace, the largest.
class CallMemory {
 public:
  explicit CallMemory(size_t bytes);
  ~CallMemory();
  CallMemory(const CallMemory&) = delete;
  CallMemory& operator=(const CallMemory&) = delete;

  void* data() const;

 private:
  bool keep();  // for the next call

  std::unique_ptr<MemoryBlock> block_;
};

// Bytes kept for the next calls.
size_t kept_workspaces();

}  // namespace fused_lstm::cpu
