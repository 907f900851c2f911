// The order in which the rows of one row tile are walked through time.
//
// A row lives through the steps 0 .. length - 1, and lengths never grow from row to row, so a row
// tile is live through 0 .. length of its first row - 1. The forward pass walks them up, or down
// for a reversed direction; the backward pass the other way round.
#pragma once

#include "math.cuh"

namespace fused_lstm {
namespace cuda {

// How many steps row `row` of the batch lives: live(t) never grows with t, so search by halves.
__device__ __forceinline__ int64_t row_length(const Steps& steps, int64_t row) {
  if (row >= steps.batch) return 0;
  if (!steps.offsets) return steps.count;
  int64_t low = 0, high = steps.count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (steps.live(middle) > row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

struct Walk {
  int64_t count;  // steps in which the tile's first row is live
  bool reverse;

  __device__ __forceinline__ Walk(const Steps& steps, int64_t first_row, bool reverse_)
      : count(row_length(steps, first_row)), reverse(reverse_) {}

  __device__ __forceinline__ int64_t forward(int64_t step) const {
    return reverse ? count - 1 - step : step;
  }
  __device__ __forceinline__ int64_t backward(int64_t step) const {
    return reverse ? step : count - 1 - step;
  }
};

// What the backward pass of one cell reads that no other block or thread makes.
template <typename Acc>
struct SavedCell {
  Gates<Acc> a;
  Acc c, c_prev, grad_y;
};

// Of step t of row `row`, which lives `length` steps. c_prev is the saved c of the step walked
// before, or c0.
template <typename T, typename Acc>
__device__ __forceinline__ SavedCell<Acc> load_saved(const BackwardParams& p,
                                                     const BackwardDirection& d, int64_t t,
                                                     int64_t row, int64_t unit, int64_t length) {
  const int64_t n = p.steps.offset(t) + row;
  SavedCell<Acc> saved;
  saved.a = load_gates<Acc>(static_cast<const T*>(d.gates) + n * p.gates_stride + unit, p.hidden);
  saved.c = static_cast<const Acc*>(d.c)[n * p.hidden + unit];
  saved.grad_y = load_or_zero<Acc>(static_cast<const T*>(d.grad_y), n, p.grad_y_stride, unit);
  const int64_t before = d.reverse ? t + 1 : t - 1;
  saved.c_prev =
      before < 0 || before >= length
          ? load_or_zero<Acc>(static_cast<const T*>(d.c0), row, p.c0_stride, unit)
          : static_cast<const Acc*>(d.c)[(p.steps.offset(before) + row) * p.hidden + unit];
  return saved;
}

}  // namespace cuda
}  // namespace fused_lstm
