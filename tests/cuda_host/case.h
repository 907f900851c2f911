// One test case of the driver: what the command line and the input file say, and the arrays.
#pragma once

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "math.cuh"

namespace driver {

using namespace fused_lstm::cuda;

// key=value arguments; a missing number is 0.
class Options {
 public:
  Options(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
      const std::string argument = argv[i];
      const size_t equals = argument.find('=');
      if (equals == std::string::npos) throw std::runtime_error("expected key=value: " + argument);
      values_[argument.substr(0, equals)] = argument.substr(equals + 1);
    }
  }
  std::string text(const std::string& key) const {
    const auto found = values_.find(key);
    return found == values_.end() ? "" : found->second;
  }
  int number(const std::string& key) const { return std::atoi(text(key).c_str()); }
  std::vector<int64_t> list(const std::string& key) const {
    std::vector<int64_t> result;
    std::string rest = text(key);
    while (!rest.empty()) {
      const size_t comma = rest.find(',');
      result.push_back(std::atoll(rest.substr(0, comma).c_str()));
      rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    }
    return result;
  }

 private:
  std::map<std::string, std::string> values_;
};

// An array of exactly `size` elements on the heap, 16-byte aligned: the address sanitizer sees
// every access outside of it. Filled with bytes that are NaN in every float type.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size = 0, int fill = 0xff)
      : size_(size), data_(static_cast<T*>(std::aligned_alloc(16, (bytes() + 15) / 16 * 16))) {
    std::memset(data_.get(), fill, bytes());
  }
  T* data() { return data_.get(); }
  T& operator[](int64_t i) { return data_.get()[i]; }
  const T& operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return size_; }
  size_t bytes() const { return size_ * sizeof(T); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  int64_t size_;
  std::unique_ptr<T, Free> data_;
};

// Rows of `columns` numbers, `stride` apart; what lies between stays NaN.
template <typename T>
struct Matrix {
  int64_t rows = 0, columns = 0, stride = 0;
  Array<T> array;

  Matrix() = default;
  Matrix(int64_t rows_, int64_t columns_, int64_t pad = 0)
      : rows(rows_),
        columns(columns_),
        stride(columns_ + pad),
        array(rows_ ? (rows_ - 1) * (columns_ + pad) + columns_ : 0) {}
  T* data() { return array.data(); }
  T& at(int64_t row, int64_t column) { return array[row * stride + column]; }
  double value(int64_t row, int64_t column) const { return to_acc(array[row * stride + column]); }
};

template <typename T>
void read_matrix(std::ifstream& in, Matrix<T>& m) {
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.columns; ++c) {
      double x = 0;
      in.read(reinterpret_cast<char*>(&x), sizeof x);
      if constexpr (sizeof(T) == 8) {
        m.at(r, c) = x;
      } else {
        m.at(r, c) = From<T>::acc(static_cast<float>(x));
      }
    }
  }
}

template <typename T>
void append_matrix(std::vector<double>& out, const Matrix<T>& m, int64_t first_column,
                   int64_t columns) {
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) out.push_back(m.value(r, first_column + c));
  }
}
template <typename T>
void append_matrix(std::vector<double>& out, const Matrix<T>& m) {
  append_matrix(out, m, 0, m.columns);
}

// The arrays of one direction, as the op has them on the device.
template <class Math>
struct Direction {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  bool reverse = false;
  Matrix<T> gates_x, b_ih, b_hh, w_hh, h0, c0, grad_h_n, grad_c_n;  // inputs
  Matrix<T> h_n, c_n, gates, dgates, dh0, dc0;                      // outputs
  Matrix<Acc> c;
  Array<char> exchange;
};

template <class Math>
struct Case {
  using T = typename Math::Element;
  using Acc = typename Math::Acc;
  int64_t steps, batch, hidden, rows;
  bool packed, bias, state, grad_y_given, grad_state_given, save;
  int64_t pad;
  std::vector<int64_t> offsets;  // [T + 1]
  Array<int64_t> device_offsets;
  Matrix<T> y, grad_y;  // all directions side by side
  std::vector<Direction<Math>> directions;

  Case(const Options& options, bool save_) : save(save_) {
    const std::vector<int64_t> sizes = options.list("sizes");
    packed = !sizes.empty();
    batch = options.number("B");
    hidden = options.number("H");
    steps = options.number("T");
    bias = options.number("bias") != 0;
    state = options.number("state") != 0;
    grad_y_given = options.number("grad_y") != 0;
    grad_state_given = options.number("grad_state") != 0;
    pad = options.number("pad");
    offsets.push_back(0);
    for (int64_t t = 0; t < steps; ++t) {
      offsets.push_back(offsets.back() + (packed ? sizes[t] : batch));
    }
    rows = offsets.back();
    device_offsets = Array<int64_t>(packed ? steps + 1 : 0);
    for (int64_t t = 0; t < device_offsets.size(); ++t) device_offsets[t] = offsets[t];
    const std::string reverse = options.text("reverse");
    const int64_t count = static_cast<int64_t>(reverse.size());
    y = Matrix<T>(rows, count * hidden, pad);
    grad_y = Matrix<T>(rows, count * hidden, pad);
    for (const char flag : reverse) {
      Direction<Math> d;
      d.reverse = flag == '1';
      d.gates_x = Matrix<T>(rows, 4 * hidden, pad);
      for (Matrix<T>* m : {&d.b_ih, &d.b_hh}) *m = Matrix<T>(1, 4 * hidden);
      d.w_hh = Matrix<T>(4 * hidden, hidden, pad);
      for (Matrix<T>* m : {&d.h0, &d.c0, &d.grad_h_n, &d.grad_c_n}) {
        *m = Matrix<T>(batch, hidden, pad);
      }
      for (Matrix<T>* m : {&d.h_n, &d.c_n, &d.dh0, &d.dc0}) *m = Matrix<T>(batch, hidden);
      d.gates = Matrix<T>(save ? rows : 0, 4 * hidden, pad);
      d.c = Matrix<Acc>(save ? rows : 0, hidden);
      d.dgates = Matrix<T>(rows, 4 * hidden, pad);
      directions.push_back(std::move(d));
    }
    read(options.text("in"));
  }

  Steps device_steps() { return {steps, batch, packed ? device_offsets.data() : nullptr}; }

  // The outputs in the order that test_cuda_kernels_host.py reads them.
  std::vector<double> results() const {
    std::vector<double> out;
    for (size_t i = 0; i < directions.size(); ++i) {
      const Direction<Math>& d = directions[i];
      append_matrix(out, y, static_cast<int64_t>(i) * hidden, hidden);
      append_matrix(out, d.h_n);
      append_matrix(out, d.c_n);
      if (!save) continue;
      append_matrix(out, d.gates);
      append_matrix(out, d.c);
      append_matrix(out, d.dgates);
      append_matrix(out, d.dh0);
      append_matrix(out, d.dc0);
    }
    return out;
  }

 private:
  void read(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    read_matrix(in, grad_y);
    for (Direction<Math>& d : directions) {
      for (Matrix<T>* m :
           {&d.gates_x, &d.b_ih, &d.b_hh, &d.w_hh, &d.h0, &d.c0, &d.grad_h_n, &d.grad_c_n}) {
        read_matrix(in, *m);
      }
    }
    if (!in) throw std::runtime_error("input file too short: " + path);
  }
};

}  // namespace driver
