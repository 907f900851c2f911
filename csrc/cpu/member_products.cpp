// Gradients of weights that the members of a batch share, one for each member: what vmap over grad
// asks for. Rows of V members lie next to each other, row n of member v at n * V + v.
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cpu/call_memory.h"
#include "cpu/dispatch.h"
#include "cpu/memory_pool.h"
#include "cpu/precision.h"
#include "cpu/ranges.h"
#include "cpu/run.h"
#include "cpu/take_turns.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

namespace fused_lstm::cpu {
namespace {

using at::Tensor;

// Rows and columns of the left that are multiplied at a time: transposed they are half a MiB of
// float32, which every panel of the right reads again and which L2 holds.
constexpr int64_t kMostRows = 256;
constexpr int64_t kMostColumns = 512;

// Of one member, the sum over n of left[n]^T right[n] for each right, and the sum of left[n].
template <class T>
class MemberProducts {
 public:
  MemberProducts(const Tensor& left, at::TensorList right, int64_t members,
                 const std::vector<Tensor>& out)
      : k_(kernels_here<T>(left.size(0))),
        members_(members),
        rows_(left.size(0) / members),
        columns_(left.size(1)),
        left_(data<T>(left)),
        sums_(mutable_data<Acc<T>>(out.back())) {
    for (size_t i = 0; i < right.size(); ++i) {
      right_.push_back({data<T>(right[i]), right[i].size(1), mutable_data<Acc<T>>(out[i])});
    }
  }

  // Columns `columns` of the left of this member, by the calling thread.
  void run(int64_t member, Range columns) const {
    const FlushDenormals flush;
    const CallMemory workspace(carve(nullptr).bytes);
    const Buffers buffers = carve(workspace.data());
    for (int64_t row = 0; row < rows_; row += kMostRows) {
      const Range rows{row, std::min(rows_, row + kMostRows)};
      for (int64_t begin = columns.begin; begin < columns.end; begin += kMostColumns) {
        add(buffers, member, rows, {begin, std::min(columns.end, begin + kMostColumns)});
      }
    }
    if (k_.release != nullptr) k_.release();
  }

 private:
  struct Right {
    const T* rows;  // [N * V, columns]
    int64_t columns;
    Acc<T>* products;  // [V, L, columns]
  };

  struct Buffers {
    T *transposed, *panel, *operands;
    const T** rows;
    size_t bytes;
  };

  int64_t depth() const { return std::min(rows_, kMostRows); }
  // Not a multiple of 4096 bytes, so that the rows of a tile fall into different cache sets.
  int64_t stride() const { return padded<T>(depth()) + 64 / int64_t(sizeof(T)); }

  Buffers carve(void* base) const {
    Arena arena(base);
    const int64_t columns = std::min(columns_, kMostColumns);
    Buffers b{arena.take<T>(columns * stride()), arena.take<T>(k_.panel_size(depth())),
              arena.take<T>(k_.rows_size(columns, depth())), arena.take<const T*>(depth()), 0};
    b.bytes = arena.used();
    return b;
  }

  void add(const Buffers& b, int64_t member, Range rows, Range columns) const {
    const int64_t depth = rows.size(), first = rows.begin * members_ + member;
    k_.transpose({left_ + first * columns_ + columns.begin, members_ * columns_, depth,
                  columns.size(), b.transposed, stride()});
    Acc<T>* sums = sums_ + member * columns_ + columns.begin;
    if (rows.begin == 0) std::fill_n(sums, columns.size(), Acc<T>(0));
    k_.row_sums(b.transposed, stride(), columns.size(), depth, sums);

    PanelGemm<T, Acc<T>> g{};
    g.rows = columns.size();
    g.k = depth;
    g.a = k_.operands({b.transposed, stride()}, g.rows, depth, b.operands);
    g.panel = b.panel;
    for (const Right& right : right_) {
      for (int64_t n = 0; n < depth; ++n) {
        b.rows[n] = right.rows + (first + n * members_) * right.columns;
      }
      g.c = {right.products + (member * columns_ + columns.begin) * right.columns, right.columns};
      g.init_stride = right.columns;
      multiply(g, {nullptr, 0, b.rows}, right.columns, rows.begin == 0, b.panel);
    }
  }

  // g.c (+)= g.a right, panel after panel: each is packed where the one before is in the cache.
  void multiply(PanelGemm<T, Acc<T>> g, const Rows<const T>& right, int64_t columns, bool first,
                T* panel) const {
    const int64_t width = k_.width();
    for (g.col = 0; g.col < columns; g.col += width) {
      g.cols = int(std::min(width, columns - g.col));
      g.init = first ? nullptr : g.c.base + g.col;
      k_.pack_rows({right, g.k, g.col, g.cols, panel});
      k_.gemm(g);
    }
  }

  const Kernels<T>& k_;
  const int64_t members_, rows_, columns_;
  const T* left_;  // [N * V, L]
  Acc<T>* sums_;   // [V, L]
  std::vector<Right> right_;
};

// Members are cut where there are few of them: at least two pieces for each thread, so that none
// waits long for the last, of at least 64 columns, so that packing is at most a sixteenth of the
// products.
constexpr int64_t kLeastColumns = 64;

template <class T>
void multiply_members(const Tensor& left, at::TensorList right, int64_t members,
                      const std::vector<Tensor>& out) {
  const MemberProducts<T> products(left, right, members, out);
  const int64_t columns = left.size(1);
  const int64_t pieces = std::max<int64_t>(
      1, std::min(ceil_div(2 * available_threads(), members), columns / kLeastColumns));
  take_turns(members * pieces, [&](int64_t k) {
    products.run(k / pieces, part_of(columns, k % pieces, pieces, kLeastColumns));
  });
}

void check_rows(const char* name, const Tensor& t, const Tensor& left) {
  TORCH_CHECK(t.dim() == 2 && t.size(0) == left.size(0) && t.scalar_type() == left.scalar_type() &&
                  t.device() == left.device(),
              "fused_lstm: expected ", name, " of ", left.size(0), " rows of ", left.scalar_type(),
              " on ", left.device(), ", got ", t.sizes(), " of ", t.scalar_type(), " on ",
              t.device());
}

// [V, L, R] for each right [N * V, R], and behind them [V, L], of the left's type.
std::vector<Tensor> member_products(const Tensor& left, at::TensorList right, int64_t members) {
  TORCH_CHECK(left.dim() == 2, "fused_lstm: expected left of two dimensions, got ", left.sizes());
  TORCH_CHECK(members > 0 && left.size(0) % members == 0, "fused_lstm: expected rows of ", members,
              " members, got ", left.size(0));
  for (const Tensor& t : right) check_rows("right", t, left);
  const at::ScalarType type = left.scalar_type();
  if (!has_kernels(type)) {
    const ExactProducts exact;
    return converted(member_products(left.to(at::kFloat), converted(right, at::kFloat), members),
                     type);
  }
  const Tensor left_rows = left.contiguous();
  std::vector<Tensor> right_rows, out;
  const auto sums = left.options().dtype(state_type(type));
  for (const Tensor& t : right) {
    right_rows.push_back(t.contiguous());
    out.push_back(pooled_tensor({members, left.size(1), t.size(1)}, sums));
  }
  out.push_back(pooled_tensor({members, left.size(1)}, sums));
  if (left.size(0) == 0) {
    for (const Tensor& t : out) t.zero_();
  } else {
    with_type(type, [&](auto tag) {
      multiply_members<decltype(tag)>(left_rows, right_rows, members, out);
    });
  }
  return state_type(type) == type ? out : converted(out, type);
}

}  // namespace
}  // namespace fused_lstm::cpu

TORCH_LIBRARY_IMPL(fused_lstm, CPU, m) {
  m.impl("_member_products", TORCH_FN(fused_lstm::cpu::member_products));
}
