// Sequences with lengths, and sequences cut where the state is reset, as segments: pieces of rows
// of a dense batch that begin with a state of their own. Sorted by length they are the rows of a
// packed batch, whose steps the kernels walk, at their places in the dense one.
#pragma once

#include <vector>

#include "problem.h"

namespace fused_lstm {

struct Segment {
  int64_t row;            // of the batch
  int64_t begin, length;  // steps
  bool first, last;       // of the row's
  bool fresh;             // begins with a reset
};

class Segments {
 public:
  // lengths [B], none beyond T, or null for T; reset [T, B], or null for never. A reset before a
  // step begins a new segment with it; what is marked beyond a length means nothing.
  Segments(int64_t steps, int64_t batch, const int64_t* lengths, const bool* reset);

  int64_t size() const { return int64_t(segments_.size()); }
  int64_t batch() const { return batch_; }
  const Segment& operator[](int64_t i) const { return segments_[i]; }
  const Steps& steps() const { return steps_; }

  // Whether the state given for the row goes into a segment; else that for resets does. No state
  // passes a boundary in either direction.
  bool takes_state(const Segment& s, bool reverse) const {
    return reverse ? s.last : s.first && !s.fresh;
  }
  // Whether a segment's last state is that of the row.
  bool ends_row(const Segment& s, bool reverse) const { return reverse ? s.first : s.last; }

 private:
  void cut(int64_t row, int64_t length, const bool* reset);
  Steps sorted_steps(int64_t steps, std::vector<int64_t> dead);

  int64_t batch_;
  std::vector<Segment> segments_;
  Steps steps_{0, 0};
};

}  // namespace fused_lstm
