// Portable vectors: arithmetic on compiler vector types, so that one source serves every
// instruction set. Included inside an instruction set's namespace with its target in force:
// FUSED_LSTM_VECTOR_BYTES is that set's register width. Includes nothing itself.

typedef float VecF __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
typedef double VecD __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
typedef int32_t VecI32 __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
typedef int64_t VecI64 __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
typedef uint32_t VecU32 __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES)));
typedef uint16_t VecU16 __attribute__((vector_size(FUSED_LSTM_VECTOR_BYTES / 2)));

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using V = VecF;
  using I = VecI32;
};
template <>
struct VecOf<double> {
  using V = VecD;
  using I = VecI64;
};
template <>
struct VecOf<bfloat16> {
  using V = VecF;
  using I = VecI32;
};

template <class T>
using Vec = typename VecOf<T>::V;
template <class A>
constexpr int kLanes = FUSED_LSTM_VECTOR_BYTES / sizeof(A);

// ---- loads and stores, whole and of the first n lanes ----

FUSED_LSTM_INLINE VecF widen(VecU16 bits) {
  return (VecF)(__builtin_convertvector(bits, VecU32) << 16);
}

#if defined(FUSED_LSTM_BFLOAT16_DOT)
// Round to nearest even; a NaN keeps its sign and becomes quiet, denormals become zero.
FUSED_LSTM_INLINE VecU16 narrow(VecF value) { return (VecU16)_mm512_cvtneps_pbh((__m512)value); }
FUSED_LSTM_INLINE void store(bfloat16* p, VecF v) {
  const VecU16 bits = narrow(v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}
FUSED_LSTM_INLINE void store_some(bfloat16* p, VecF v, int n) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow(v));
}
#endif

FUSED_LSTM_INLINE VecF load(const float* p) {
  VecF v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
FUSED_LSTM_INLINE VecD load(const double* p) {
  VecD v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
FUSED_LSTM_INLINE VecF load(const bfloat16* p) {
  VecU16 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return widen(v);
}
FUSED_LSTM_INLINE void store(float* p, VecF v) { __builtin_memcpy(p, &v, sizeof(v)); }
FUSED_LSTM_INLINE void store(double* p, VecD v) { __builtin_memcpy(p, &v, sizeof(v)); }

// The first n lanes; on load the others are zero.
#if FUSED_LSTM_VECTOR_BYTES == 64
FUSED_LSTM_INLINE VecF load_some(const float* p, int n) {
  return (VecF)_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
FUSED_LSTM_INLINE VecD load_some(const double* p, int n) {
  return (VecD)_mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
FUSED_LSTM_INLINE VecF load_some(const bfloat16* p, int n) {
  return widen((VecU16)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), p));
}
FUSED_LSTM_INLINE void store_some(float* p, VecF v, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
}
FUSED_LSTM_INLINE void store_some(double* p, VecD v, int n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), (__m512d)v);
}
#else
template <class T>
FUSED_LSTM_INLINE Vec<T> load_some(const T* p, int n) {
  T buffer[kLanes<Acc<T>>] = {};
  for (int l = 0; l < n; ++l) buffer[l] = p[l];
  return load(buffer);
}
template <class T>
FUSED_LSTM_INLINE void store_some(T* p, Vec<T> v, int n) {
  T buffer[kLanes<Acc<T>>];
  store(buffer, v);
  for (int l = 0; l < n; ++l) p[l] = buffer[l];
}
#endif

template <class T>
FUSED_LSTM_INLINE Vec<T> load(const T* p, int n) {
  return n == kLanes<Acc<T>> ? load(p) : load_some(p, n);
}
template <class T>
FUSED_LSTM_INLINE void store(T* p, Vec<T> v, int n) {
  if (n == kLanes<Acc<T>>) return store(p, v);
  store_some(p, v, n);
}

// Says that v is wanted in a register: the compiler would rather read memory once per use, and
// loads are what a processor can do fewest of.
template <class V>
FUSED_LSTM_INLINE void hold(V& v) {
#if defined(FUSED_LSTM_X86)
  asm("" : "+v"(v));
#else
  asm("" : "+w"(v));
#endif
}

// ---- sigmoid and tanh ----

// The smaller and the larger of each lane; where x is NaN, NaN.
template <class V>
FUSED_LSTM_INLINE V at_most(V x, V most) {
  return x > most ? most : x;
}
template <class V>
FUSED_LSTM_INLINE V at_least(V x, V least) {
  return x < least ? least : x;
}
// 1 / d for normal d below 2^126, within 1 ulp.
template <class V>
FUSED_LSTM_INLINE V reciprocal(V d) {
  return 1 / d;
}
#if FUSED_LSTM_VECTOR_BYTES == 64
// One instruction each, which returns its second operand for a NaN; the compiler may not assume it.
// A full mask costs nothing; without one, GCC warns of the undefined operand in its own headers.
constexpr __mmask16 kAll16 = 0xffff;
constexpr __mmask8 kAll8 = 0xff;
FUSED_LSTM_INLINE VecF at_most(VecF x, VecF most) {
  return (VecF)_mm512_maskz_min_ps(kAll16, most, x);
}
FUSED_LSTM_INLINE VecD at_most(VecD x, VecD most) {
  return (VecD)_mm512_maskz_min_pd(kAll8, most, x);
}
FUSED_LSTM_INLINE VecF at_least(VecF x, VecF least) {
  return (VecF)_mm512_maskz_max_ps(kAll16, least, x);
}
FUSED_LSTM_INLINE VecD at_least(VecD x, VecD least) {
  return (VecD)_mm512_maskz_max_pd(kAll8, least, x);
}
// A division takes 10 to 16 cycles (float64: to 24). An estimate good to 2^-14 and Newton's steps,
// which square the error, take 3 instructions (5).
FUSED_LSTM_INLINE VecF reciprocal(VecF d) {
  const VecF y = (VecF)_mm512_maskz_rcp14_ps(kAll16, d);
  return y + y * (1 - d * y);
}
FUSED_LSTM_INLINE VecD reciprocal(VecD d) {
  VecD y = (VecD)_mm512_maskz_rcp14_pd(kAll8, d);
  y = y + y * (1 - d * y);
  return y + y * (1 - d * y);
}
#elif FUSED_LSTM_VECTOR_BYTES == 32
FUSED_LSTM_INLINE VecF at_most(VecF x, VecF most) { return (VecF)_mm256_min_ps(most, x); }
FUSED_LSTM_INLINE VecD at_most(VecD x, VecD most) { return (VecD)_mm256_min_pd(most, x); }
FUSED_LSTM_INLINE VecF at_least(VecF x, VecF least) { return (VecF)_mm256_max_ps(least, x); }
FUSED_LSTM_INLINE VecD at_least(VecD x, VecD least) { return (VecD)_mm256_max_pd(least, x); }
#endif

// What exp needs to know of a format: round(x log2 e) by adding kRound, whose low bits then hold
// the integer; ln 2 as a sum of two numbers, of which the first has enough trailing zeros that
// n * kLn2Hi is exact, also without a fused multiply-add; and (exp(r) - 1 - r) / r^2 as a
// polynomial, interpolated at the Chebyshev points of |r| <= ln 2 / 2, lowest power first.
template <class A>
struct ExpFormat;
template <>
struct ExpFormat<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kSeries[] = {// exp(r) within 1.0e-8 < 2^-26
                                      0.5f, 0.166665769896987757f, 0.0416665546172045742f,
                                      0.00836317905272257737f, 0.00139261835877134945f};
  static constexpr float kMax = 87.0f;      // 1 + exp(87) < 2^126
  static constexpr float kTanhMax = 10.0f;  // 1 - tanh(10) = 4.1e-9 < 2^-25
};
template <>
struct ExpFormat<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2Hi = 6.93147180369123816490e-01, kLn2Lo = 1.90821492927058770002e-10;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kSeries[] = {// exp(r) within 1.7e-17 < 2^-55
                                       0.5,
                                       0.166666666666666675,
                                       0.0416666666666241279,
                                       0.00833333333333006183,
                                       0.00138888889172137169,
                                       0.000198412698630536169,
                                       0.0000248015212959543751,
                                       2.75572684599970648e-6,
                                       2.76200884454097482e-7,
                                       2.51003854955103191e-8};
  static constexpr double kMax = 708.0;     // 1 + exp(708) < 2^1022
  static constexpr double kTanhMax = 20.0;  // 1 - tanh(20) = 8.5e-18 < 2^-54
};

// exp(x) = scale * (1 + p) with scale = 2^n, n = round(x log2 e), p = expm1(x - n ln 2).
// |x| <= kMax or NaN.
template <class A>
FUSED_LSTM_INLINE void exp_parts(Vec<A> x, Vec<A>& scale, Vec<A>& p) {
  using I = typename VecOf<A>::I;
  using F = ExpFormat<A>;
  constexpr int terms = sizeof(F::kSeries) / sizeof(A);
  const Vec<A> shifted = x * A(1.44269504088896340736) + F::kRound;
  const Vec<A> n = shifted - F::kRound;
  const Vec<A> r = (x - n * F::kLn2Hi) - n * F::kLn2Lo;
  Vec<A> q = Vec<A>{} + F::kSeries[terms - 1];
#pragma GCC unroll 16
  for (int k = terms - 2; k >= 0; --k) q = q * r + F::kSeries[k];
  p = q * (r * r) + r;
  scale = (Vec<A>)(((I)shifted << F::kMantissa) + ((I{} + F::kBias) << F::kMantissa));
}

// 1 / (1 + exp(-x)); within 4 ulp where |x| <= kMax, zero or one beyond, NaN for NaN.
template <class A>
FUSED_LSTM_INLINE Vec<A> sigmoid(Vec<A> x) {
  using F = ExpFormat<A>;
  const Vec<A> most = Vec<A>{} + F::kMax;
  Vec<A> scale, p;
  exp_parts<A>(-at_least(at_most(x, most), -most), scale, p);
  const Vec<A> y = reciprocal(A(1) + (scale + scale * p));
  return x < -most ? Vec<A>{} : y;
}

// e / (e + 2) with e = expm1(2 |x|), then the sign of x; within 4 ulp, NaN for NaN.
template <class A>
FUSED_LSTM_INLINE Vec<A> tanh(Vec<A> x) {
  using F = ExpFormat<A>;
  using I = typename VecOf<A>::I;
  const I sign = (I)x & ((I{} + 1) << int(8 * sizeof(A) - 1));
  const Vec<A> m = at_most((Vec<A>)((I)x ^ sign), Vec<A>{} + F::kTanhMax);
  Vec<A> scale, p;
  exp_parts<A>(m + m, scale, p);
  const Vec<A> e = scale * p + (scale - A(1));
  return (Vec<A>)((I)(e * reciprocal(e + A(2))) | sign);
}

// ---- transposition ----

template <int... L>
struct Lanes {};
template <int N, int... L>
struct MakeLanes : MakeLanes<N - 1, N - 1, L...> {};
template <int... L>
struct MakeLanes<0, L...> {
  using type = Lanes<L...>;
};

template <class V, class I, int... S>
FUSED_LSTM_INLINE V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, S...);
#else
  return __builtin_shuffle(a, b, I{S...});
#endif
}

// Swaps the off-diagonal S x S blocks of every 2S x 2S block of rows a (above) and b (below).
template <int S, class V, class I, int... L>
FUSED_LSTM_INLINE void swap_blocks(V& a, V& b, Lanes<L...>) {
  constexpr int n = sizeof...(L);
  const V above = shuffle<V, I, ((L & S) ? n + L - S : L)...>(a, b);
  b = shuffle<V, I, ((L & S) ? n + L : L + S)...>(a, b);
  a = above;
}

template <class A, int S>
FUSED_LSTM_INLINE void transpose_stage(Vec<A> (&rows)[kLanes<A>]) {
  constexpr int n = kLanes<A>;
  if constexpr (S < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (!(i & S)) {
        swap_blocks<S, Vec<A>, typename VecOf<A>::I>(rows[i], rows[i + S],
                                                     typename MakeLanes<n>::type{});
      }
    }
    transpose_stage<A, 2 * S>(rows);
  }
}

// rows[i][j] <-> rows[j][i], in log2(lanes) stages.
template <class A>
FUSED_LSTM_INLINE void transpose(Vec<A> (&rows)[kLanes<A>]) {
  transpose_stage<A, 1>(rows);
}

template <class A, int S>
FUSED_LSTM_INLINE void sum_stage(Vec<A> (&rows)[kLanes<A>]) {
  constexpr int n = kLanes<A>;
  if constexpr (S < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; i += 2 * S) {
      swap_blocks<S, Vec<A>, typename VecOf<A>::I>(rows[i], rows[i + S],
                                                   typename MakeLanes<n>::type{});
      rows[i] += rows[i + S];
    }
    sum_stage<A, 2 * S>(rows);
  }
}

// Lane l of the result is the sum of the lanes of rows[l]: a transposition of which every stage
// adds up what it has brought together, so that the next has half as much to do.
template <class A>
FUSED_LSTM_INLINE Vec<A> sum_lanes(Vec<A> (&rows)[kLanes<A>]) {
  sum_stage<A, 1>(rows);
  return rows[0];
}
