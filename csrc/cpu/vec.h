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

// Round to nearest even; a NaN keeps its sign and becomes quiet.
FUSED_LSTM_INLINE VecU16 narrow(VecF value) {
  const VecU32 bits = (VecU32)value;
  const VecU32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU32 quiet = (bits >> 16) | 0x40u;
  const VecU32 is_nan = (VecU32)(value != value);
  return __builtin_convertvector((rounded & ~is_nan) | (quiet & is_nan), VecU16);
}

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
FUSED_LSTM_INLINE void store(bfloat16* p, VecF v) {
  const VecU16 bits = narrow(v);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

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
FUSED_LSTM_INLINE void store_some(bfloat16* p, VecF v, int n) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << n) - 1), (__m256i)narrow(v));
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

// ---- sigmoid and tanh ----

// What exp needs to know of a format: round(x log2 e) by adding kRound, whose low bits then hold
// the integer; ln 2 in two parts, the first with enough trailing zeros that n * kLn2Hi is exact.
template <class A>
struct ExpFormat;
template <>
struct ExpFormat<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kLn2Hi = 0.693359375f, kLn2Lo = -2.12194440e-4f;
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr int kTerms = 7;          // (ln 2 / 2)^7 / 8! = 1.5e-8 < 2^-24
  static constexpr float kMax = 89.0f;      // exp(89) overflows
  static constexpr float kTanhMax = 10.0f;  // 1 - tanh(10) = 4.1e-9 < 2^-25
};
template <>
struct ExpFormat<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kLn2Hi = 6.93147180369123816490e-01, kLn2Lo = 1.90821492927058770002e-10;
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr int kTerms = 13;         // (ln 2 / 2)^13 / 14! = 1.2e-17 < 2^-53
  static constexpr double kMax = 710.0;     // exp(710) overflows
  static constexpr double kTanhMax = 20.0;  // 1 - tanh(20) = 8.5e-18 < 2^-54
};

constexpr double inverse_factorial(int k) { return k < 2 ? 1.0 : inverse_factorial(k - 1) / k; }

// exp(x) = scale * (1 + p) with scale = 2^n, n = round(x log2 e), p = expm1(x - n ln 2) by its
// Taylor series. |x| <= kMax or NaN; scale is infinite where exp(x) is or nearly overflows.
template <class A>
FUSED_LSTM_INLINE void exp_parts(Vec<A> x, Vec<A>& scale, Vec<A>& p) {
  using I = typename VecOf<A>::I;
  using F = ExpFormat<A>;
  const Vec<A> shifted = x * A(1.44269504088896340736) + F::kRound;
  const Vec<A> n = shifted - F::kRound;
  const Vec<A> r = (x - n * F::kLn2Hi) - n * F::kLn2Lo;
  Vec<A> q = Vec<A>{} + A(inverse_factorial(F::kTerms));
#pragma GCC unroll 16
  for (int k = F::kTerms - 1; k >= 2; --k) q = q * r + A(inverse_factorial(k));
  p = q * r * r + r;
  scale = (Vec<A>)(((I)shifted << F::kMantissa) + ((I{} + F::kBias) << F::kMantissa));
}

// 1 / (1 + exp(-x)); within 4 ulp where the result is normal, NaN for NaN.
template <class A>
FUSED_LSTM_INLINE Vec<A> sigmoid(Vec<A> x) {
  using F = ExpFormat<A>;
  constexpr A kMin = 2 - F::kMax;  // 2^n stays normal
  Vec<A> m = -x, scale, p;
  m = m > F::kMax ? Vec<A>{} + F::kMax : m;
  m = m < kMin ? Vec<A>{} + kMin : m;
  exp_parts<A>(m, scale, p);
  return A(1) / (A(1) + scale * (A(1) + p));
}

// e / (e + 2) with e = expm1(2 |x|), then the sign of x; within 4 ulp, NaN for NaN.
template <class A>
FUSED_LSTM_INLINE Vec<A> tanh(Vec<A> x) {
  using F = ExpFormat<A>;
  using I = typename VecOf<A>::I;
  const I sign = (I)x & ((I{} + 1) << int(8 * sizeof(A) - 1));
  Vec<A> m = (Vec<A>)((I)x ^ sign), scale, p;
  m = m > F::kTanhMax ? Vec<A>{} + F::kTanhMax : m;
  exp_parts<A>(m + m, scale, p);
  const Vec<A> e = scale * p + (scale - A(1));
  return (Vec<A>)((I)(e / (e + A(2))) | sign);
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
