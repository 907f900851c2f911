// Where the backward pass finds the gates and c of each row: as the forward pass saved them, or in
// the block of steps that was computed again.
#pragma once

#include "backward_layout.h"
#include "members.h"

namespace fused_lstm::cpu {

template <class T>
class SavedStates {
 public:
  SavedStates(const BackwardArgs<T>& args, const BackwardLayout<T>& layout)
      : a_(args), places_(*args.steps, args.problem.compact), layout_(layout) {}

  // From now on walk steps [s0, s1) of a direction are in the block.
  void set_block(const TimeOrder& order, int64_t s0, int64_t s1) {
    begin_ = s0;
    end_ = s1;
    first_row_ = order.rows(s0, s1).begin;
  }
  bool in_block(int64_t s) const { return begin_ <= s && s < end_; }

  // Of a row of a chunk that is being computed.
  const T* gates(int d, int64_t row) const {
    const int64_t size = 4 * a_.problem.hidden_size;
    return blocks() ? layout_.direction(d).gates_again + (row - first_row_) * size
                    : a_.gates + (d * places_.rows() + places_.of(row)) * size;
  }
  const Acc<T>* c(int d, int64_t row) const { return blocks() ? c_again(d, row) : c_kept(d, row); }

  // This member's rows of walk step s. Lists are for as many.
  Rows<const T> gates(int d, const TimeOrder& order, int64_t s, int64_t count,
                      const MemberRows& rows, const T** list) const {
    const int64_t size = 4 * a_.problem.hidden_size;
    if (blocks()) return rows.of(gates(d, order.offset(s)), size);
    return StepRows(places_, rows)
        .at(a_.gates + d * places_.rows() * size, size, order.offset(s), count, list);
  }
  Rows<const Acc<T>> c(int d, const TimeOrder& order, int64_t s, int64_t count,
                       const MemberRows& rows, const Acc<T>** list) const {
    const int64_t size = a_.problem.hidden_size;
    if (in_block(s)) return rows.of(c_again(d, order.offset(s)), size);
    return StepRows(places_, rows)
        .at(a_.c + d * places_.rows() * size, size, order.offset(s), count, list);
  }

 private:
  bool blocks() const { return end_ > 0; }
  const Acc<T>* c_again(int d, int64_t row) const {
    return layout_.direction(d).c_again + (row - first_row_) * a_.problem.hidden_size;
  }
  const Acc<T>* c_kept(int d, int64_t row) const {
    return a_.c + (d * places_.rows() + places_.of(row)) * a_.problem.hidden_size;
  }

  const BackwardArgs<T>& a_;
  const Places places_;
  const BackwardLayout<T>& layout_;
  int64_t begin_ = 0, end_ = 0, first_row_ = 0;
};

}  // namespace fused_lstm::cpu
