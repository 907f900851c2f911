#include "memory_pool.h"

#include <ATen/EmptyTensor.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "memory_block.h"

namespace fused_lstm::cpu {
namespace {

// Smaller blocks malloc hands out again itself.
constexpr size_t kLeast = 64 << 10;
// Idle memory is bounded: by this, and with what is in use by little more than was ever in use at
// once, so that blocks of odd sizes do not pile up where every batch has another length.
constexpr size_t kMostIdle = 256 << 20;
constexpr size_t kSlack = 32 << 20;
constexpr size_t kMostWaste = 4;  // a block may be larger than asked for by the 4th part

using Blocks = std::vector<std::unique_ptr<MemoryBlock>>;

class Pool {
 public:
  std::unique_ptr<MemoryBlock> take(size_t bytes) {
    std::unique_ptr<MemoryBlock> block = fitting(bytes);
    if (block == nullptr) block = allocated(bytes);
    const size_t used = used_ += block->size;
    for (size_t most = most_used_; most < used && !most_used_.compare_exchange_weak(most, used);) {
    }
    return block;
  }

  void give_back(std::unique_ptr<MemoryBlock> block) {
    used_ -= block->size;
    Blocks dropped;  // ends after the lock
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;
    idle_bytes_ += block->size;
    idle_.push_back(std::move(block));
    auto enough = idle_.begin();
    const size_t most = most_used_ + most_used_ / 4 + kSlack;
    const auto too_much = [&] { return idle_bytes_ > kMostIdle || used_ + idle_bytes_ > most; };
    for (; enough != idle_.end() && too_much(); ++enough) {
      idle_bytes_ -= (*enough)->size;
      dropped.push_back(std::move(*enough));
    }
    idle_.erase(idle_.begin(), enough);
  }

  PoolState state() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {used_, idle_bytes_};
  }

 private:
  // The smallest idle block that holds as much and is not much larger, or none; of several the last
  // that was given back, which may still lie in a cache. Whoever finds the pool in use does
  // without: in a child that was forked meanwhile it stays so for ever.
  std::unique_ptr<MemoryBlock> fitting(size_t bytes) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return nullptr;
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      const MemoryBlock& block = **it;
      const bool fits = block.holds(bytes) && block.size - bytes <= bytes / kMostWaste;
      if (fits && (best == idle_.end() || block.size <= (*best)->size)) best = it;
    }
    if (best == idle_.end()) return nullptr;
    std::unique_ptr<MemoryBlock> block = std::move(*best);
    idle_.erase(best);
    idle_bytes_ -= block->size;
    return block;
  }

  std::unique_ptr<MemoryBlock> allocated(size_t bytes) {
    try {
      return std::make_unique<MemoryBlock>(bytes);
    } catch (const c10::Error&) {
      drop_idle();
      return std::make_unique<MemoryBlock>(bytes);
    }
  }

  void drop_idle() {
    Blocks dropped;
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return;
    dropped.swap(idle_);
    idle_bytes_ = 0;
  }

  std::mutex mutex_;
  Blocks idle_;  // the oldest first
  size_t idle_bytes_ = 0;
  std::atomic<size_t> used_{0}, most_used_{0};
};

// Never destroyed: tensors may end after everything else.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

void give_back(void* block) {
  pool().give_back(std::unique_ptr<MemoryBlock>(static_cast<MemoryBlock*>(block)));
}

c10::DataPtr pooled_memory(size_t bytes) {
  if (bytes < kLeast) return c10::GetCPUAllocator()->allocate(bytes);
  MemoryBlock* block = pool().take(bytes).release();
  return {block->begin(), block, &give_back, c10::Device(c10::DeviceType::CPU)};
}

class PoolAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override { return pooled_memory(bytes); }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

at::Tensor pooled_tensor(at::IntArrayRef shape, const at::TensorOptions& options) {
  static PoolAllocator* const allocator = new PoolAllocator;  // storages point to it
  return at::detail::empty_generic(shape, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   options.dtype().toScalarType(), std::nullopt);
}

PoolState pool_state() { return pool().state(); }

}  // namespace fused_lstm::cpu
