// The nonlinear part of the cell, on vectors of hidden units, as precise as tensors of T can show.
// Included after vec.h inside an instruction set's namespace.
//
// Vector instructions for the units of one vector on AVX-512, as GCC 12 writes them, loads and
// stores among them; with float32's functions and rounding by integers bfloat16 would take the last
// column:
//
//                             float32   bfloat16
//   forward, nothing saved        143         73   158
//   forward, gates saved          147         84   206
//   gate gradients                 62         76   137

template <class T>
FUSED_LSTM_INLINE Vec<T> cell_tanh(Vec<T> x) {
  return tanh<Acc<T>>(x);
}

// c_t, h_t and the activated gates of one row.
template <class T>
class Cell {
 public:
  FUSED_LSTM_INLINE void step(const Vec<T> (&pre)[4], Vec<T> c_prev) {
    using A = Acc<T>;
    a_ = {sigmoid<A>(pre[0]), sigmoid<A>(pre[1]), tanh<A>(pre[2]), sigmoid<A>(pre[3])};
    c_ = cell_state(a_, c_prev);
  }
  FUSED_LSTM_INLINE Gates<Vec<T>> gates() const { return a_; }
  FUSED_LSTM_INLINE Vec<T> c() const { return c_; }
  FUSED_LSTM_INLINE Vec<T> h() const { return hidden_state(a_, tanh<Acc<T>>(c_)); }

 private:
  Gates<Vec<T>> a_;
  Vec<T> c_;
};

#if defined(FUSED_LSTM_BFLOAT16_DOT)
// Results in bfloat16 are rounded by 2^-9: what is within 2^-13 of its value adds a hundredth to
// the variance of that. One error may not be left so large: that of f near one, by which a cell
// that remembers over many steps fades or grows. Of an error d in exp(-x) it takes (1 - f) d, and
// its division is exact to float32.

// 2^-14 of 1 / d; zero for infinity.
FUSED_LSTM_INLINE VecF estimated_reciprocal(VecF d) {
  return (VecF)_mm512_maskz_rcp14_ps(kAll16, d);
}

// 1 / sigmoid(x) = 1 + 2^y with y = -x log2 e, 2^y = 2^floor(y) 2^r by a polynomial, which is
// within 7.5e-5 where 0 <= r < 1. Infinity and NaN need no care: of infinity r is zero.
FUSED_LSTM_INLINE VecF sigmoid_divisor(VecF x) {
  constexpr int floor_of_all = 0x09;
  const VecF y = x * -1.44269504f;
  const VecF r = (VecF)_mm512_maskz_reduce_ps(kAll16, (__m512)y, floor_of_all);
  const VecF power = ((0.0780246928f * r + 0.226067305f) * r + 0.695833206f) * r + 0.999925256f;
  return (VecF)_mm512_maskz_scalef_ps(kAll16, (__m512)power, (__m512)y) + 1;
}

// tanh(x) = over / under, of the least relative error that 2 x 3 coefficients can have where
// |x| <= 5: 5.2e-5. Beyond it stays at 1 - 4e-5.
struct Quotient {
  VecF over, under;
};
FUSED_LSTM_INLINE Quotient tanh_quotient(VecF x) {
  const VecF most = VecF{} + 5;
  const VecF m = at_least(at_most(x, most), -most), u = m * m;
  return {m * ((6.70547681e-4f * u + 0.102416993f) * u + 0.999948074f),
          (0.0128196917f * u + 0.435431691f) * u + 1};
}

template <>
FUSED_LSTM_INLINE VecF cell_tanh<bfloat16>(VecF x) {
  const Quotient q = tanh_quotient(x);
  return q.over * estimated_reciprocal(q.under);
}

// One division for i g, and one for o tanh(c); those of the gates by themselves only where somebody
// wants them.
template <>
class Cell<bfloat16> {
 public:
  FUSED_LSTM_INLINE void step(const VecF (&pre)[4], VecF c_prev) {
    i_ = sigmoid_divisor(pre[0]);
    // Finite: else the reciprocal's second step would multiply zero by infinity.
    f_ = reciprocal(at_most(sigmoid_divisor(pre[1]), VecF{} + 0x1p127f));
    g_ = tanh_quotient(pre[2]);
    o_ = sigmoid_divisor(pre[3]);
    c_ = f_ * c_prev + g_.over * estimated_reciprocal(i_ * g_.under);
  }
  FUSED_LSTM_INLINE Gates<VecF> gates() const {
    return {estimated_reciprocal(i_), f_, g_.over * estimated_reciprocal(g_.under),
            estimated_reciprocal(o_)};
  }
  FUSED_LSTM_INLINE VecF c() const { return c_; }
  FUSED_LSTM_INLINE VecF h() const {
    const Quotient q = tanh_quotient(c_);
    return q.over * estimated_reciprocal(o_ * q.under);
  }

 private:
  VecF i_, f_, o_;  // 1 / i, f, 1 / o
  Quotient g_;
  VecF c_;
};
#endif
