#include "call_memory.h"

#include <atomic>

#include "memory_block.h"

namespace fused_lstm::cpu {
namespace {

// Of all blocks together; what would be more goes back to the system.
constexpr size_t kMostKept = 64 << 20;

// One block for each call that runs at the same time, up to so many: members of an ensemble, and
// threads of Python. A call alone finds its block in the first slot.
constexpr int kSlots = 8;
std::atomic<MemoryBlock*> kept[kSlots];
std::atomic<size_t> kept_bytes{0};  // never less than what is kept

}  // namespace

CallMemory::CallMemory(size_t bytes) {
  for (int slot = 0; slot < kSlots && block_ == nullptr; ++slot) {
    block_.reset(kept[slot].exchange(nullptr));
  }
  if (block_ != nullptr) kept_bytes -= block_->size;
  if (block_ != nullptr && block_->holds(bytes)) return;
  block_.reset();
  block_ = std::make_unique<MemoryBlock>(bytes);
}

CallMemory::~CallMemory() {
  if (kept_bytes.fetch_add(block_->size) + block_->size <= kMostKept && keep()) return;
  kept_bytes -= block_->size;
}

bool CallMemory::keep() {
  for (std::atomic<MemoryBlock*>& slot : kept) {
    MemoryBlock* none = nullptr;
    if (!slot.compare_exchange_strong(none, block_.get())) continue;
    block_.release();
    return true;
  }
  return false;
}

void* CallMemory::data() const { return block_->begin(); }

size_t kept_workspaces() { return kept_bytes; }

}  // namespace fused_lstm::cpu
