// How the rows, units and steps of a layer are shared out among the members of a team.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../plan.h"
#include "../problem.h"
#include "kernels.h"
#include "team.h"

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

  int64_t first() const { return first_; }
  int64_t step() const { return step_; }
  int64_t most() const { return most_; }
  int64_t count(int64_t n) const {
    return n <= first_ ? 0 : std::min(most_, ceil_div(n - first_, step_));
  }
  // Address of the member's j-th row, for rows `stride` elements apart.
  template <class U>
  U* at(U* rows, int64_t j, int64_t stride) const {
    return rows + (first_ + j * step_) * stride;
  }

 private:
  int64_t first_, step_, most_;
};

// Steps in the order in which a direction walks them.
class Walk {
 public:
  Walk(const Steps& steps, bool reverse) : steps_(steps), reverse_(reverse) {}
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
  // Calls f(t, rows) for every step at which the sequences of some rows end, in this walk.
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

// Place of a member in its team: rank = (direction group, row group, unit group).
struct Place {
  int direction_group, row_group, unit_group;
  int group_rank, group_size;  // among the members of the direction group

  Place(const CpuPlan& plan, int rank)
      : direction_group(rank / (plan.row_groups * plan.unit_groups)),
        row_group(rank / plan.unit_groups % plan.row_groups),
        unit_group(rank % plan.unit_groups),
        group_rank(rank % (plan.row_groups * plan.unit_groups)),
        group_size(plan.row_groups * plan.unit_groups) {}
};

// The barriers of a team: of everybody, of each direction group, and of the members that share the
// rows of a row group.
class TeamBarriers {
 public:
  explicit TeamBarriers(const CpuPlan& plan)
      : plan_(plan),
        everybody_(plan.threads()),
        groups_(plan.direction_groups, Barrier(plan.row_groups * plan.unit_groups)),
        rows_(plan.direction_groups * plan.row_groups, Barrier(plan.unit_groups)) {}

  Barrier& everybody() { return everybody_; }
  Barrier& group(const Place& p) { return groups_[p.direction_group]; }
  Barrier& rows(const Place& p) {
    return rows_[p.direction_group * plan_.row_groups + p.row_group];
  }

 private:
  const CpuPlan& plan_;
  Barrier everybody_;
  std::vector<Barrier> groups_, rows_;
};

// Cuts a workspace into cache-line aligned pieces; with a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class U>
  U* take(int64_t count) {
    U* piece = base_ == nullptr ? nullptr : reinterpret_cast<U*>(base_ + used_);
    used_ += (size_t(count) * sizeof(U) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

inline float to_acc(bfloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline float to_acc(float value) { return value; }
inline double to_acc(double value) { return value; }

// Round to nearest even; a NaN stays one.
template <class T>
T from_acc(Acc<T> value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    if (value != value) return {uint16_t((bits >> 16) | 0x40u)};
    return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
  } else {
    return value;
  }
}

template <class T>
void widen_all(const T* from, int64_t n, Acc<T>* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_acc(from[i]);
}
template <class T>
void narrow_all(const Acc<T>* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from_acc<T>(from[i]);
}

}  // namespace fused_lstm::cpu
