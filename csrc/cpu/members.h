// The members of a team: who each one is, and the barriers at which they meet.
#pragma once

#include <vector>

#include "kernels.h"
#include "plan.h"
#include "ranges.h"
#include "team.h"

namespace fused_lstm::cpu {

// Position of a member in its team: rank = (direction group, row group, unit group).
struct Position {
  int rank, direction_group, row_group, unit_group;
  int group_rank, group_size;  // among the members of the direction group

  Position(const CpuPlan& plan, int rank)
      : rank(rank),
        direction_group(rank / (plan.row_groups * plan.unit_groups)),
        row_group(rank / plan.unit_groups % plan.row_groups),
        unit_group(rank % plan.unit_groups),
        group_rank(rank % (plan.row_groups * plan.unit_groups)),
        group_size(plan.row_groups * plan.unit_groups) {}

  // This member's share of what its direction group does together.
  Range share_of(int64_t n, int64_t unit = 1) const {
    return part_of(n, group_rank, group_size, unit);
  }
};

// The barriers of a team: of everybody, of each direction group, and of the members that share the
// rows of a row group.
class TeamBarriers {
 public:
  explicit TeamBarriers(const CpuPlan& plan)
      : row_groups_(plan.row_groups),
        everybody_(plan.threads()),
        groups_(plan.direction_groups, Barrier(plan.row_groups * plan.unit_groups)),
        rows_(plan.direction_groups * plan.row_groups, Barrier(plan.unit_groups)) {}

  Barrier& everybody() { return everybody_; }
  Barrier& group(const Position& p) { return groups_[p.direction_group]; }
  Barrier& rows(const Position& p) { return rows_[p.direction_group * row_groups_ + p.row_group]; }

 private:
  int row_groups_;
  Barrier everybody_;
  std::vector<Barrier> groups_, rows_;
};

// This member's rows of walk steps, in tensors whose rows lie so.
class StepRows {
 public:
  StepRows(const Places& places, const MemberRows& rows) : places_(places), rows_(rows) {}

  // The first `count` of the step whose rows begin at `offset`. `list` has room for them.
  template <class U>
  Rows<U> at(U* tensor, int64_t stride, int64_t offset, int64_t count, U** list) const {
    if (!places_.listed()) {
      return rows_.of(tensor + offset * stride, stride);
    }
    for (int64_t j = 0; j < count; ++j) {
      list[j] = tensor + places_.of(offset + rows_.row(j)) * stride;
    }
    return {nullptr, 0, list};
  }

 private:
  const Places places_;
  const MemberRows& rows_;
};

// Zeros for this member's share of the rows that are no step's, of a tensor that has a place for
// each: a few in each of so many turns. Cleared in one go they take as long as memory does;
// between products their stores go there while the processor multiplies.
template <class T>
class Clearing {
 public:
  // None where the tensor is null.
  Clearing(T* tensor, int64_t size, const Steps& steps, const Position& position,
           const CpuPlan& plan, int64_t turns)
      : tensor_(tensor),
        size_(size),
        dead_(steps.dead()),
        share_(
            part_of(tensor == nullptr ? 0 : int64_t(dead_.size()), position.rank, plan.threads())),
        next_(share_.begin),
        turns_(turns) {}

  void advance() {
    if (next_ == share_.end) return;
    const int64_t end = share_.begin + share_.size() * ++turn_ / turns_;
    for (; next_ < end; ++next_) std::fill_n(tensor_ + dead_[next_] * size_, size_, T{});
  }

 private:
  T* tensor_;
  int64_t size_;
  const std::vector<int64_t>& dead_;
  Range share_;
  int64_t next_, turns_, turn_ = 0;
};

}  // namespace fused_lstm::cpu
