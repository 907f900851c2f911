// Which rows, units and steps: how they are cut into parts, and in which order they are walked.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace fused_lstm::cpu {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Part `i` of `parts` nearly equal parts of [0, n), cut at multiples of `unit`.
inline Range part_of(int64_t n, int64_t i, int64_t parts, int64_t unit = 1) {
  const int64_t units = ceil_div(n, unit);
  return {std::min(n, units * i / parts * unit), std::min(n, units * (i + 1) / parts * unit)};
}

// The batch rows first, first + step, ... of one row group: `count(n)` of the first n rows.
// A dense batch is cut into blocks; of a packed one, whose live rows shrink, every group takes
// each groups-th row, so that all have their share at every step.
class MemberRows {
 public:
  MemberRows(const Steps& steps, int group, int groups)
      : first_(steps.packed() ? group : part_of(steps.batch(), group, groups).begin),
        step_(steps.packed() ? groups : 1),
        most_(steps.packed() ? ceil_div(steps.batch() - group, groups)
                             : part_of(steps.batch(), group, groups).size()) {}

  int64_t step() const { return step_; }
  int64_t most() const { return most_; }
  int64_t count(int64_t n) const {
    return n <= first_ ? 0 : std::min(most_, ceil_div(n - first_, step_));
  }
  // The batch row that is the member's j-th.
  int64_t row(int64_t j) const { return first_ + j * step_; }
  // The member's rows of a [B, stride] block.
  template <class U>
  Rows<U> of(U* block, int64_t stride) const {
    return {block + first_ * stride, step_ * stride};
  }

 private:
  int64_t first_, step_, most_;
};

// Where the live rows lie in a tensor: in one that has a row for each row of the input, or in one
// of the live rows alone.
class Places {
 public:
  Places(const Steps& steps, bool live_only)
      : steps_(steps), listed_(steps.placed() && !live_only) {}

  bool listed() const { return listed_; }
  int64_t rows() const { return listed_ ? steps_.tensor_rows() : steps_.rows(); }
  int64_t of(int64_t row) const { return listed_ ? steps_.place(row) : row; }

 private:
  const Steps& steps_;
  bool listed_;
};

// The steps in the order in which a direction walks them: walk step s happens at time(s), and the
// walk step that happens at time t is time(t).
class TimeOrder {
 public:
  TimeOrder(const Steps& steps, bool reverse) : steps_(steps), reverse_(reverse) {}
  int64_t time(int64_t s) const { return reverse_ ? steps_.steps() - 1 - s : s; }
  int64_t size(int64_t s) const { return steps_.size(time(s)); }
  int64_t offset(int64_t s) const { return steps_.offset(time(s)); }
  // Rows of walk step s whose state comes from step s - 1; the rest start from the initial state.
  int64_t continued(int64_t s) const { return s == 0 ? 0 : std::min(size(s), size(s - 1)); }
  // All rows of walk steps [s0, s1), which are consecutive in time.
  Range rows(int64_t s0, int64_t s1) const {
    const int64_t t0 = reverse_ ? time(s1 - 1) : s0, t1 = reverse_ ? time(s0) + 1 : s1;
    return {steps_.offset(t0), steps_.offset(t1)};
  }
  // Calls f(t, rows) for every step at which the sequences of some rows end, in this order.
  template <class F>
  void for_ends(const F& f) const {
    const int64_t last = steps_.steps() - 1;
    if (reverse_ || !steps_.packed()) return f(time(last), Range{0, steps_.batch()});
    for (int64_t t = last; t >= 0; --t) {
      const int64_t later = t == last ? 0 : steps_.size(t + 1);
      if (steps_.size(t) > later) f(t, Range{later, steps_.size(t)});
    }
  }

 private:
  const Steps& steps_;
  bool reverse_;
};

// Calls f(i, next) for i of [range), upwards or downwards; next is what follows i, or -1. Going up
// and down by turns begins a pass with what the cache still holds of the one before.
template <class F>
void for_each_by_turns(Range range, bool downwards, const F& f) {
  if (downwards) {
    for (int64_t i = range.end - 1; i >= range.begin; --i) f(i, i > range.begin ? i - 1 : -1);
  } else {
    for (int64_t i = range.begin; i < range.end; ++i) f(i, i + 1 < range.end ? i + 1 : -1);
  }
}

}  // namespace fused_lstm::cpu
