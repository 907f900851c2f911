#include "segments.h"

#include <algorithm>

namespace fused_lstm {

Segments::Segments(int64_t steps, int64_t batch, const int64_t* lengths, const bool* reset)
    : batch_(batch) {
  segments_.reserve(batch);
  for (int64_t row = 0; row < batch; ++row) {
    const int64_t length = lengths == nullptr ? steps : lengths[row];
    cut(row, length, reset);
  }
  std::vector<int64_t> dead;
  for (int64_t t = 0; lengths != nullptr && t < steps; ++t) {
    for (int64_t row = 0; row < batch; ++row) {
      if (t >= lengths[row]) dead.push_back(t * batch + row);
    }
  }
  steps_ = sorted_steps(steps, std::move(dead));
}

void Segments::cut(int64_t row, int64_t length, const bool* reset) {
  const auto marked = [&](int64_t t) { return reset != nullptr && reset[t * batch_ + row]; };
  for (int64_t begin = 0; begin < length;) {
    int64_t end = begin + 1;
    while (end < length && !marked(end)) ++end;
    segments_.push_back({row, begin, end - begin, begin == 0, end == length, marked(begin)});
    begin = end;
  }
}

// The longest first, as the rows of a packed batch are.
Steps Segments::sorted_steps(int64_t steps, std::vector<int64_t> dead) {
  std::stable_sort(segments_.begin(), segments_.end(),
                   [](const Segment& a, const Segment& b) { return a.length > b.length; });
  std::vector<int64_t> sizes, places;
  places.reserve(steps * batch_ - int64_t(dead.size()));
  int64_t live = size();
  for (int64_t s = 0; live > 0; ++s) {
    while (live > 0 && segments_[live - 1].length <= s) --live;
    if (live == 0) break;
    sizes.push_back(live);
    for (int64_t i = 0; i < live; ++i) {
      places.push_back((segments_[i].begin + s) * batch_ + segments_[i].row);
    }
  }
  return Steps(std::move(sizes), std::move(places), std::move(dead));
}

}  // namespace fused_lstm
