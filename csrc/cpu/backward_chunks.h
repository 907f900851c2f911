// How the backward pass cuts the steps of a direction: into chunks, whose products are batched, and
// where steps are computed again into blocks of these. Both are counted from the last step.
#pragma once

#include "layer.h"
#include "plan.h"
#include "ranges.h"

namespace fused_lstm::cpu {

// The first walk step of the chunk that ends before walk step `end`.
inline int64_t chunk_begin(const TimeOrder& order, const CpuPlan& plan, int64_t end) {
  const int64_t first = std::max<int64_t>(0, end - plan.chunk_steps);
  if (plan.chunk_rows == 0) return first;
  int64_t begin = end - 1;
  while (begin > first && order.rows(begin - 1, end).size() <= plan.chunk_rows) --begin;
  return begin;
}

// The first walk step of the block that holds walk step s: c is kept before it.
inline int64_t block_begin(const LstmProblem& p, int64_t s) {
  return std::max<int64_t>(0, p.steps - ceil_div(p.steps - s, p.keep_every) * p.keep_every);
}

// The largest of a layer.
struct ChunkSizes {
  int64_t rows = 0;               // of a chunk
  int64_t block_rows = 0;         // of a chunk, and the steps before it back to a kept c
  bool blocks_are_chunks = true;  // all of them
};

inline ChunkSizes chunk_sizes(const LstmProblem& p, const Steps& steps, const CpuPlan& plan,
                              const TimeOrder& order) {
  ChunkSizes sizes;
  for (int64_t begin = 0, end = steps.steps(); end > 0; end = begin) {
    begin = chunk_begin(order, plan, end);
    sizes.rows = std::max(sizes.rows, order.rows(begin, end).size());
    if (p.keep_every == 0) continue;
    const int64_t block = block_begin(p, begin);
    sizes.block_rows = std::max(sizes.block_rows, order.rows(block, end).size());
    sizes.blocks_are_chunks &= block == begin;
  }
  return sizes;
}

}  // namespace fused_lstm::cpu
