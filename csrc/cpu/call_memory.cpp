#include "call_memory.h"

#include <atomic>

#include "memory_block.h"

namespace fused_lstm::cpu {
namespace {

// What is larger goes back to the system.
constexpr size_t kMostKept = 64 << 20;

// One block for each call that runs at the same time, up to so many: members of an ensemble, and
// threads of Python. A call alone finds its block in the first slot.
constexpr int kSlots = 8;
std::atomic<MemoryBlock*> kept[kSlots];

}  // namespace

CallMemory::CallMemory(size_t bytes) {
  for (int slot = 0; slot < kSlots && block_ == nullptr; ++slot) {
    block_.reset(kept[slot].exchange(nullptr));
  }
  if (block_ != nullptr && block_->holds(bytes)) return;
  block_.reset();
  block_ = std::make_unique<MemoryBlock>(bytes);
}

CallMemory::~CallMemory() {
  if (block_->size > kMostKept) return;
  for (std::atomic<MemoryBlock*>& slot : kept) {
    MemoryBlock* none = nullptr;
    if (!slot.compare_exchange_strong(none, block_.get())) continue;
    block_.release();
    return;
  }
}

void* CallMemory::data() const { return block_->begin(); }

}  // namespace fused_lstm::cpu
