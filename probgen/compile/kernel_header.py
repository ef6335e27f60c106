"""What every kernel of :mod:`probgen.compile.kernel_program` begins with.

Exponentials, logarithms and what is made of them are polynomials here, which compilers turn into
vectors: those of glibc (libmvec) leave their vectors for arguments whose exponential is next to
nothing, in a mixture most of them. They are right up to some units in the last place, and at
infinities and NaN. Numbers below the smallest normal one are zero while a kernel runs, or they take
a hundred times as long as others. Functions that remain glibc's are declared in place of its headers:
to read those takes as long as to compile a small kernel. Where NaN meets a maximum it stays, as in
torch.

After S. Moshier, *Cephes mathematical library*, 1992, https://www.netlib.org/cephes (coefficients of
single precision and of the logarithm, splitting of log 2).
"""

HEADER = r"""
#include <stdint.h>
#ifdef __linux__
#include <features.h>
#endif
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define LANES __attribute__((const, simd("notinbranch")))
#if __GLIBC_PREREQ(2, 35)
#define NEWER LANES
#else
#define NEWER __attribute__((const))
#endif
#else
#define LANES __attribute__((const))
#define NEWER LANES
#endif
#define BOTH(how, name) how float name##f(float) noexcept; how double name(double) noexcept;
extern "C" {
BOTH(LANES, sin) BOTH(LANES, cos) BOTH(NEWER, erf)
double pow(double, double) noexcept;
double lgamma_r(double, int*) noexcept;
}
#define OWN(name) \
  static inline float name##_(float x) { return name##f(x); } \
  static inline double name##_(double x) { return name(x); }
OWN(sin) OWN(cos) OWN(erf)
static inline float sqrt_(float x) { return __builtin_sqrtf(x); }
static inline double sqrt_(double x) { return __builtin_sqrt(x); }
static inline float abs_(float x) { return __builtin_fabsf(x); }
static inline double abs_(double x) { return __builtin_fabs(x); }
static inline int64_t abs_(int64_t x) { return x < 0 ? -x : x; }
#define EITHER template <typename T> static inline T
#ifdef __FMA__
static inline float mad(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
static inline double mad(double x, double y, double z) { return __builtin_fma(x, y, z); }
#else
EITHER mad(T x, T y, T z) { return x * y + z; }
#endif
template <typename T> struct Bits;
template <> struct Bits<float> {
  typedef int32_t Int;
  static constexpr float round = 12582912.f, least = -104.f, most = 89.f, lowest = 0x1p-126f;
  static constexpr float up = 0x1p23f, tanh_one = 10.f, expm1_one = -40.f;
  static constexpr int digits = 23, bias = 127;
  static constexpr Int half = 0x3f3504f3;
  static inline float tail(float r) {
    float p = mad(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = mad(p, r, 8.3334519073e-3f), p = mad(p, r, 4.1665795894e-2f);
    p = mad(p, r, 1.6666665459e-1f), p = mad(p, r, 5.0000001201e-1f);
    return mad(p, r * r, r);
  }
  static inline float part(float r) {
    float p = mad(7.0376836292e-2f, r, -1.1514610310e-1f);
    p = mad(p, r, 1.1676998740e-1f), p = mad(p, r, -1.2420140846e-1f);
    p = mad(p, r, 1.4249322787e-1f), p = mad(p, r, -1.6668057665e-1f);
    p = mad(p, r, 2.0000714765e-1f), p = mad(p, r, -2.4999993993e-1f);
    return mad(p, r, 3.3333331174e-1f);
  }
};
template <> struct Bits<double> {
  typedef int64_t Int;
  static constexpr double round = 6755399441055744., least = -746., most = 710., lowest = 0x1p-1022;
  static constexpr double up = 0x1p52, tanh_one = 20., expm1_one = -60.;
  static constexpr int digits = 52, bias = 1023;
  static constexpr Int half = 0x3fe6a09e667f3bcd;
  static inline double tail(double r) {
    double p = mad(1. / 6227020800, r, 1. / 479001600);
    p = mad(p, r, 1. / 39916800), p = mad(p, r, 1. / 3628800), p = mad(p, r, 1. / 362880);
    p = mad(p, r, 1. / 40320), p = mad(p, r, 1. / 5040), p = mad(p, r, 1. / 720);
    p = mad(p, r, 1. / 120), p = mad(p, r, 1. / 24), p = mad(p, r, 1. / 6), p = mad(p, r, .5);
    return mad(p, r * r, r);
  }
  static inline double part(double r) {
    double p = mad(1.01875663804580931796e-4, r, 4.97494994976747001425e-1);
    p = mad(p, r, 4.70579119878881725854), p = mad(p, r, 14.4989225341610930846);
    p = mad(p, r, 17.9368678507819816313), p = mad(p, r, 7.70838733755885391666);
    double q = mad(r + 11.2873587189167450590, r, 45.2279145837532221105);
    q = mad(q, r, 82.9875266912776603211), q = mad(q, r, 71.1544750618563894466);
    return p / mad(q, r, 23.1251620126765340583);
  }
};
template <typename To, typename From> static inline To cast(From x) {
  To y;
  __builtin_memcpy(&y, &x, sizeof y);
  return y;
}
template <typename T> static inline T power_of_2(typename Bits<T>::Int n) {
  return cast<T>((n + Bits<T>::bias) << Bits<T>::digits);
}
template <typename T> struct Reduced { T rest; typename Bits<T>::Int n; };
template <typename T> static inline Reduced<T> reduced(T x) {
  T shifted = mad(x, (T)1.44269504088896340736, Bits<T>::round), n = shifted - Bits<T>::round;
  T rest = mad(n, (T)-0.693145751953125, x);
  rest = mad(n, (T)-1.42860682030941723212e-6, rest);
  typedef typename Bits<T>::Int Int;
  return {rest, cast<Int>(shifted) - cast<Int>(Bits<T>::round)};
}
EITHER exp_(T x) {
  T inside = x < Bits<T>::least ? Bits<T>::least : x;
  inside = inside > Bits<T>::most ? Bits<T>::most : inside;
  Reduced<T> at = reduced(inside);
  typename Bits<T>::Int half = at.n >> 1;
  return ((T)1 + Bits<T>::tail(at.rest)) * power_of_2<T>(half) * power_of_2<T>(at.n - half);
}
EITHER log_(T x) {
  typedef typename Bits<T>::Int Int;
  bool small = x < Bits<T>::lowest;
  Int i = cast<Int>(small ? x * Bits<T>::up : x) - Bits<T>::half;
  T m = cast<T>((i & (((Int)1 << Bits<T>::digits) - 1)) + Bits<T>::half), r = m - (T)1, z = r * r;
  Int whole = (i >> Bits<T>::digits) - (small ? Bits<T>::digits : 0);
  T n = cast<T>(whole + cast<Int>(Bits<T>::round)) - Bits<T>::round;
  T value = r * z * Bits<T>::part(r);
  value = mad(n, (T)-2.121944400546905827679e-4, value);
  value = r + mad((T)-.5, z, value);
  value = mad(n, (T)0.693359375, value);
  value = x > 0 ? value : x == 0 ? (T)-__builtin_inf() : (T)__builtin_nan("");
  return x < (T)__builtin_inf() ? value : x;
}
EITHER log1p_(T x) {
  T u = (T)1 + x, value = log_(u) + (x - (u - (T)1)) / u;
  value = u > 0 ? value : log_(u);
  return u == (T)1 || x == (T)__builtin_inf() ? x : value;
}
EITHER expm1_(T x) {
  T inside = x < Bits<T>::expm1_one ? Bits<T>::expm1_one : x;
  inside = inside > Bits<T>::most ? Bits<T>::most : inside;
  Reduced<T> at = reduced(inside);
  T half = power_of_2<T>(at.n - 1), value = mad(Bits<T>::tail(at.rest), half, half - (T).5);
  return x == 0 ? x : value + value;
}
static inline float signed_(float x, float y) { return __builtin_copysignf(x, y); }
static inline double signed_(double x, double y) { return __builtin_copysign(x, y); }
EITHER tanh_(T x) {
  T a = abs_(x), value = expm1_(2 * (a > Bits<T>::tanh_one ? Bits<T>::tanh_one : a));
  return signed_(value / (value + 2), x);
}
EITHER lgamma_(T x) { int sign; return (T)lgamma_r((double)x, &sign); }
EITHER pow_(T x, T y) { return (T)pow((double)x, (double)y); }
EITHER max_(T x, T y) { return (x > y || x != x) ? x : y; }
EITHER min_(T x, T y) { return (x < y || x != x) ? x : y; }
EITHER or_(T x, T y) { return x || y; }
EITHER and_(T x, T y) { return x && y; }
EITHER plus_(T x, T y) { return x + y; }
EITHER times_(T x, T y) { return x * y; }
EITHER sigmoid_(T x) { return (T)1 / ((T)1 + exp_(-x)); }
EITHER log_sigmoid_(T x) { return min_((T)0, x) - log1p_(exp_(-abs_(x))); }
EITHER log_sigmoid_backward_(T g, T x) {
  T z = exp_(-abs_(x)), part = z / ((T)1 + z);
  return x < 0 ? g * ((T)1 - part) : g * part;
}
EITHER softplus_(T x, T beta, T most) {
  T soft = log1p_(exp_(x * beta)) / beta;
  return x * beta > most ? x : soft;
}
EITHER softplus_backward_(T g, T x, T beta, T most) {
  T z = exp_(x * beta), soft = g * z / (z + (T)1);
  return x * beta > most ? g : soft;
}
EITHER cross_entropy_(T x, T y) { return ((T)1 - y) * x - log_sigmoid_(x); }
EITHER xlogy_(T x, T y) { T value = x * log_(y); return y != y ? y : x == 0 ? (T)0 : value; }
EITHER log_add_exp_(T x, T y) {
  T top = max_(x, y), sum = top + log1p_(exp_(-abs_(x - y)));
  return x == y && __builtin_isinf(x) ? x : sum;
}
#undef EITHER
#pragma omp declare reduction(max_ : float, double, int64_t, bool : omp_out = max_(omp_out, omp_in)) \
  initializer(omp_priv = omp_orig)
#pragma omp declare reduction(min_ : float, double, int64_t, bool : omp_out = min_(omp_out, omp_in)) \
  initializer(omp_priv = omp_orig)
#if defined(__SSE__)
static inline unsigned flushed() {
  unsigned mode = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(mode | 0x8040);
  return mode;
}
static inline void restored(unsigned mode) { __builtin_ia32_ldmxcsr(mode); }
#else
static inline unsigned flushed() { return 0; }
static inline void restored(unsigned) {}
#endif
static inline int64_t row_(int64_t i, int64_t n, int& bad) {
  i += i < 0 ? n : 0;
  bool outside = i < 0 || i >= n;
  bad |= outside;
  return outside ? 0 : i;
}
"""
