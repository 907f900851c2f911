// Backward pass of one layer: walks the steps of each direction from the last to the first, in
// chunks, each followed by its products.
#include "backward_chunks.h"
#include "backward_layout.h"
#include "backward_products.h"
#include "backward_replay.h"
#include "backward_walk.h"
#include "layer.h"
#include "members.h"

namespace fused_lstm::cpu {
namespace {

template <class T>
class BackwardMember {
 public:
  BackwardMember(const BackwardArgs<T>& args, const CpuPlan& plan, const BackwardLayout<T>& layout,
                 TeamBarriers& barriers, int rank)
      : a_(args),
        p_(args.problem),
        plan_(plan),
        layout_(layout),
        position_(plan, rank),
        everybody_(barriers.everybody()),
        group_barrier_(barriers.group(position_)),
        scratch_(layout.scratch(rank)),
        saved_(args, layout),
        replay_(args, plan, layout, position_, scratch_),
        walk_(args, plan, layout, saved_, position_, barriers.rows(position_), scratch_),
        products_(args, plan, layout, saved_, position_, group_barrier_, scratch_) {}

  void run() {
    for (int d = position_.direction_group; d < p_.directions; d += plan_.direction_groups) {
      prepare(d);
      group_barrier_.wait();  // prepared
      const TimeOrder order(*a_.steps, a_.weights[d].reverse);
      for (int64_t s1 = a_.steps->steps(); s1 > 0;) {
        const int64_t s0 = chunk_begin(order, plan_, s1);
        if (p_.keep_every > 0) replay(d, order, s0, s1);
        walk_.run(d, order, s0, s1);
        group_barrier_.wait();  // walked
        if (s0 > 0 || a_.dh0 != nullptr) walk_.pull_back(d, order, s0);
        products_.run(d, order, s0, s1);
        group_barrier_.wait();  // multiplied
        s1 = s0;
      }
      finish(d);
    }
    add_directions();
  }

 private:
  void prepare(int d) {
    const BackwardDirection<T>& b = layout_.direction(d);
    products_.pack_weights(d);
    start(a_.grad_h_n, d, p_.batch * p_.output_size(), b.dh);
    start(a_.grad_c_n, d, p_.batch * p_.hidden_size, b.dc);
    start(a_.c0, d, p_.batch * p_.hidden_size, b.c0);
    if (b.h0 != nullptr) {
      const Range share = position_.share_of(p_.output_size());
      std::fill(b.h0 + share.begin, b.h0 + share.end, T{});
    }
  }

  // Walk steps [s0, s1) are in the block, if they are not already. Nobody needs the block before
  // any more: everybody has been at "multiplied".
  void replay(int d, const TimeOrder& order, int64_t s0, int64_t s1) {
    const bool begins = s1 == a_.steps->steps();
    if (!begins && saved_.in_block(s0)) return;
    const int64_t begin = block_begin(p_, s0);
    saved_.set_block(order, begin, s1);
    replay_.run(d, order, begin, s1);
    group_barrier_.wait();  // replayed
  }

  // state = values[d], or zero: this member's share.
  void start(const T* values, int d, int64_t size, Acc<T>* state) {
    const Range share = position_.share_of(size);
    if (values != nullptr) {
      widen_all<T>(values + d * size + share.begin, share.size(), state + share.begin);
    } else {
      std::fill(state + share.begin, state + share.end, Acc<T>(0));
    }
  }

  // What was accumulated goes out in T.
  void finish(int d) {
    const BackwardDirection<T>& b = layout_.direction(d);
    const DirectionGradients<T>& grads = a_.grads[d];
    const int64_t hidden = p_.hidden_size, out = p_.output_size();
    write(b.dw_ih, 4 * hidden * p_.input_size, grads.w_ih);
    write(b.dw_hh, 4 * hidden * out, grads.w_hh);
    write(b.dw_hr, out * hidden, grads.w_hr);
    write(b.db, 4 * hidden, grads.b_ih);
    write(b.db, 4 * hidden, grads.b_hh);
    write(b.dh, p_.batch * out, a_.dh0 == nullptr ? nullptr : a_.dh0 + d * p_.batch * out);
    write(b.dc, p_.batch * hidden, a_.dc0 == nullptr ? nullptr : a_.dc0 + d * p_.batch * hidden);
  }

  void write(const Acc<T>* from, int64_t size, T* to) {
    if (to == nullptr || static_cast<const void*>(from) == to) return;
    const Range share = position_.share_of(size);
    narrow_all<T>(from + share.begin, share.size(), to + share.begin);
  }

  // dx of the second direction was written to a buffer of its own.
  void add_directions() {
    if (a_.dx == nullptr || p_.directions == 1) return;
    everybody_.wait();
    const Range share = part_of(a_.steps->rows(), position_.rank, plan_.threads());
    for (int64_t row = share.begin; row < share.end; ++row) {
      T* dx = a_.dx + a_.steps->place(row) * p_.input_size;
      const T* other = layout_.direction(1).dx + row * p_.input_size;
      for (int64_t i = 0; i < p_.input_size; ++i) {
        dx[i] = from_acc<T>(to_acc(dx[i]) + to_acc(other[i]));
      }
    }
  }

  const BackwardArgs<T>& a_;
  const LstmProblem& p_;
  const CpuPlan& plan_;
  const BackwardLayout<T>& layout_;
  const Position position_;
  Barrier& everybody_;
  Barrier& group_barrier_;
  const BackwardScratch<T> scratch_;
  SavedStates<T> saved_;
  BackwardReplay<T> replay_;
  BackwardWalk<T> walk_;
  BackwardProducts<T> products_;
};

}  // namespace

template <class T>
size_t backward_workspace(const BackwardArgs<T>& args, const CpuPlan& plan) {
  return BackwardLayout<T>(args, plan, nullptr).bytes();
}

template <class T>
bool backward(const BackwardArgs<T>& args, const CpuPlan& plan, void* workspace) {
  const BackwardLayout<T> layout(args, plan, workspace);
  TeamBarriers barriers(plan);
  return run_team(plan.threads(), [&](int rank) {
    BackwardMember<T>(args, plan, layout, barriers, rank).run();
    if (args.kernels->release != nullptr) args.kernels->release();
  });
}

#define FUSED_LSTM_INSTANTIATE(T)                                                \
  template size_t backward_workspace<T>(const BackwardArgs<T>&, const CpuPlan&); \
  template bool backward<T>(const BackwardArgs<T>&, const CpuPlan&, void*)
FUSED_LSTM_INSTANTIATE(float);
FUSED_LSTM_INSTANTIATE(double);
#if defined(FUSED_LSTM_X86)
FUSED_LSTM_INSTANTIATE(bfloat16);
#endif

}  // namespace fused_lstm::cpu
