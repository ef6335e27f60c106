"""What every kernel of :mod:`probgen.compile.kernel_program` begins with.

Functions of C whose vectors glibc has (libmvec) are declared as such, in place of its headers: to
read those takes as long as to compile a small kernel. Where NaN meets a maximum it stays, as in
torch.
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
BOTH(LANES, exp) BOTH(LANES, log) BOTH(LANES, sin) BOTH(LANES, cos)
BOTH(NEWER, log1p) BOTH(NEWER, expm1) BOTH(NEWER, tanh) BOTH(NEWER, erf)
double pow(double, double) noexcept;
double lgamma_r(double, int*) noexcept;
}
#define OWN(name) \
  static inline float name##_(float x) { return name##f(x); } \
  static inline double name##_(double x) { return name(x); }
OWN(exp) OWN(log) OWN(sin) OWN(cos) OWN(log1p) OWN(expm1) OWN(tanh) OWN(erf)
static inline float sqrt_(float x) { return __builtin_sqrtf(x); }
static inline double sqrt_(double x) { return __builtin_sqrt(x); }
static inline float abs_(float x) { return __builtin_fabsf(x); }
static inline double abs_(double x) { return __builtin_fabs(x); }
static inline int64_t abs_(int64_t x) { return x < 0 ? -x : x; }
#define EITHER template <typename T> static inline T
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
static inline int64_t row_(int64_t i, int64_t n, int& bad) {
  i += i < 0 ? n : 0;
  bool outside = i < 0 || i >= n;
  bad |= outside;
  return outside ? 0 : i;
}
"""
