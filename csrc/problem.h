// What one call of the op has to compute: plain data, shared by the planners and the kernels.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fused_lstm {

enum class DType { float32, float64, bfloat16, float16 };

// "float32" and so on; throws std::invalid_argument for anything else.
inline DType dtype_named(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "float64") return DType::float64;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16") return DType::float16;
  throw std::invalid_argument("expected float32, float64, bfloat16 or float16, got '" + name + "'");
}

// One layer with all its directions.
struct LstmProblem {
  int64_t steps = 0;        // T
  int64_t batch = 0;        // B, rows of the first step
  int64_t rows = 0;         // N, all rows: T * B, or the sum of the batch sizes
  int64_t input_size = 0;   // I
  int64_t hidden_size = 0;  // H
  int64_t proj_size = 0;    // 0 without projection
  int directions = 1;
  bool bias = true;
  DType dtype = DType::float32;
  bool save = false;  // keep gates and c for the backward pass
  // Of the saved, keep c of every so many steps only and no gates; 0 for everything. What is not
  // kept is computed again from the outputs, which are there.
  int64_t keep_every = 0;
  bool compact = false;    // the saved have rows for the live ones only, in the order of Steps
  bool packed = false;     // input of PackedSequence, or segments
  bool prepacked = false;  // weights are panels already

  int64_t output_size() const { return proj_size > 0 ? proj_size : hidden_size; }  // P
};

// The live rows of every step. Row b of step t is row offset(t) + b of all rows, and lies at
// place(row) of the tensors that have a row for each: there is a table of places where the tensors
// are dense, [T, B, features], and their sequences have lengths, or several follow one another.
class Steps {
 public:
  Steps(int64_t steps, int64_t batch) : steps_(steps), batch_(batch) {}
  // sizes[t] rows at step t, not increasing.
  explicit Steps(std::vector<int64_t> sizes)
      : steps_(int64_t(sizes.size())),
        batch_(sizes.empty() ? 0 : sizes[0]),
        sizes_(std::move(sizes)) {
    offsets_.reserve(sizes_.size() + 1);
    int64_t offset = 0;
    for (int64_t size : sizes_) {
      offsets_.push_back(offset);
      offset += size;
    }
    offsets_.push_back(offset);
  }

  // places[row] in tensors for all rows; dead, the places of no row.
  Steps(std::vector<int64_t> sizes, std::vector<int64_t> places, std::vector<int64_t> dead)
      : Steps(std::move(sizes)) {
    places_ = std::move(places);
    dead_ = std::move(dead);
    placed_ = true;
  }

  int64_t steps() const { return steps_; }
  int64_t batch() const { return batch_; }
  bool packed() const { return !offsets_.empty(); }
  int64_t size(int64_t t) const { return packed() ? sizes_[t] : batch_; }
  int64_t offset(int64_t t) const { return packed() ? offsets_[t] : t * batch_; }
  int64_t rows() const { return offset(steps_); }
  bool placed() const { return placed_; }
  int64_t place(int64_t row) const { return placed() ? places_[row] : row; }
  // Places that no row has, where tensors that have all are zero.
  const std::vector<int64_t>& dead() const { return dead_; }
  int64_t tensor_rows() const { return rows() + int64_t(dead_.size()); }

 private:
  int64_t steps_, batch_;
  bool placed_ = false;
  std::vector<int64_t> sizes_, offsets_, places_, dead_;
};

}  // namespace fused_lstm
