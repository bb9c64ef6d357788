// Metal's mathematical functions. 16-bit floats: computed in float, rounded once.
#pragma once
#include "vec.h"

#define INFINITY __builtin_inff()
#define HUGE_VALF __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define INT_MAX __INT_MAX__
#define INT_MIN (-__INT_MAX__ - 1)
#define UINT_MAX (__INT_MAX__ * 2u + 1u)
#define M_PI_F 3.14159274101257324f
#define M_E_F 2.71828174591064453f
#define M_LN2_F 0.693147182464599609f
#define M_LOG2E_F 1.44269502162933350f
#define M_SQRT2_F 1.41421353816986084f

namespace metal {

#define MB_FLOAT_1(name, expression)                                         \
  MB_INLINE float name(float x) { return expression; }                       \
  MB_INLINE half name(half h) { float x = h; return half(expression); }      \
  MB_INLINE bfloat name(bfloat h) { float x = h; return bfloat(expression); } \
  template <class T, int N>                                                  \
  MB_INLINE vec<T, N> name(vec<T, N> v) {                                    \
    for (int i = 0; i < N; i++) v[i] = name(v[i]);                           \
    return v;                                                                \
  }
MB_FLOAT_1(exp, __builtin_expf(x))
MB_FLOAT_1(exp2, __builtin_exp2f(x))
MB_FLOAT_1(exp10, __builtin_powf(10.0f, x))
MB_FLOAT_1(log, __builtin_logf(x))
MB_FLOAT_1(log2, __builtin_log2f(x))
MB_FLOAT_1(log10, __builtin_log10f(x))
MB_FLOAT_1(sqrt, __builtin_sqrtf(x))
MB_FLOAT_1(rsqrt, 1.0f / __builtin_sqrtf(x))
MB_FLOAT_1(sin, __builtin_sinf(x))
MB_FLOAT_1(cos, __builtin_cosf(x))
MB_FLOAT_1(tan, __builtin_tanf(x))
MB_FLOAT_1(asin, __builtin_asinf(x))
MB_FLOAT_1(acos, __builtin_acosf(x))
MB_FLOAT_1(atan, __builtin_atanf(x))
MB_FLOAT_1(sinh, __builtin_sinhf(x))
MB_FLOAT_1(cosh, __builtin_coshf(x))
MB_FLOAT_1(tanh, __builtin_tanhf(x))
MB_FLOAT_1(asinh, __builtin_asinhf(x))
MB_FLOAT_1(acosh, __builtin_acoshf(x))
MB_FLOAT_1(atanh, __builtin_atanhf(x))
MB_FLOAT_1(floor, __builtin_floorf(x))
MB_FLOAT_1(ceil, __builtin_ceilf(x))
MB_FLOAT_1(trunc, __builtin_truncf(x))
MB_FLOAT_1(rint, __builtin_rintf(x))
MB_FLOAT_1(round, __builtin_roundf(x))
MB_FLOAT_1(fabs, __builtin_fabsf(x))
MB_FLOAT_1(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
MB_FLOAT_1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
MB_FLOAT_1(sign, x > 0 ? 1.0f : x < 0 ? -1.0f : x != x ? 0.0f : x)
#undef MB_FLOAT_1

#define MB_FLOAT_2(name, expression)                                         \
  MB_INLINE float name(float x, float y) { return expression; }              \
  MB_INLINE half name(half a, half b) { float x = a, y = b; return half(expression); } \
  MB_INLINE bfloat name(bfloat a, bfloat b) { float x = a, y = b; return bfloat(expression); } \
  template <class T, int N>                                                  \
  MB_INLINE vec<T, N> name(vec<T, N> a, vec<T, N> b) {                       \
    for (int i = 0; i < N; i++) a[i] = name(a[i], b[i]);                     \
    return a;                                                                \
  }
MB_FLOAT_2(pow, __builtin_powf(x, y))
MB_FLOAT_2(powr, __builtin_powf(x, y))
MB_FLOAT_2(fmod, __builtin_fmodf(x, y))
MB_FLOAT_2(atan2, __builtin_atan2f(x, y))
MB_FLOAT_2(copysign, __builtin_copysignf(x, y))
MB_FLOAT_2(fmax, __builtin_fmaxf(x, y))
MB_FLOAT_2(fmin, __builtin_fminf(x, y))
MB_FLOAT_2(fdim, __builtin_fdimf(x, y))
MB_FLOAT_2(step, y < x ? 0.0f : 1.0f)
#undef MB_FLOAT_2

#define MB_CLASSIFY(name, expression)                                        \
  MB_INLINE bool name(float x) { return expression; }
MB_CLASSIFY(isnan, __builtin_isnan(x))
MB_CLASSIFY(isinf, __builtin_isinf(x))
MB_CLASSIFY(isfinite, __builtin_isfinite(x))
MB_CLASSIFY(isnormal, __builtin_isnormal(x))
MB_CLASSIFY(signbit, __builtin_signbit(x))
#undef MB_CLASSIFY

// The type that a mix of scalars is compared in, as the usual conversions give it.
template <class A, class B>
using mb_common = std::remove_cvref_t<decltype(A() + B())>;

template <class A, class B>
MB_INLINE auto max(A a, B b) {
  if constexpr (std::is_same_v<A, B>) {
    if constexpr (mb_is_small<A> || std::is_floating_point_v<A>)
      return A(__builtin_fmaxf(float(a), float(b)));
    else
      return a < b ? b : a;
  } else {
    typedef mb_common<A, B> C;
    return max(C(a), C(b));
  }
}
template <class A, class B>
MB_INLINE auto min(A a, B b) {
  if constexpr (std::is_same_v<A, B>) {
    if constexpr (mb_is_small<A> || std::is_floating_point_v<A>)
      return A(__builtin_fminf(float(a), float(b)));
    else
      return b < a ? b : a;
  } else {
    typedef mb_common<A, B> C;
    return min(C(a), C(b));
  }
}
template <class T, int N>
MB_INLINE vec<T, N> max(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; i++) a[i] = max(a[i], b[i]);
  return a;
}
template <class T, int N>
MB_INLINE vec<T, N> min(vec<T, N> a, vec<T, N> b) {
  for (int i = 0; i < N; i++) a[i] = min(a[i], b[i]);
  return a;
}
template <class T>
MB_INLINE T max3(T a, T b, T c) { return max(a, max(b, c)); }
template <class T>
MB_INLINE T min3(T a, T b, T c) { return min(a, min(b, c)); }
template <class A, class B, class C>
MB_INLINE auto clamp(A x, B low, C high) { return min(max(x, low), high); }
template <class T>
MB_INLINE T abs(T x) {
  if constexpr (mb_is_small<T> || std::is_floating_point_v<T>)
    return T(__builtin_fabsf(float(x)));
  else if constexpr (std::is_unsigned_v<T>)
    return x;
  else
    return x < T(0) ? T(-x) : x;
}
MB_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MB_INLINE half fma(half a, half b, half c) {
  return half(__builtin_fmaf(float(a), float(b), float(c)));
}
MB_INLINE bfloat fma(bfloat a, bfloat b, bfloat c) {
  return bfloat(__builtin_fmaf(float(a), float(b), float(c)));
}
template <class T>
MB_INLINE T mix(T a, T b, T t) { return T(a + (b - a) * t); }
MB_INLINE float smoothstep(float a, float b, float x) {
  float t = saturate((x - a) / (b - a));
  return t * t * (3.0f - 2.0f * t);
}
template <class T>
MB_INLINE T select(T a, T b, bool c) { return c ? b : a; }
MB_INLINE float ldexp(float x, int k) { return __builtin_ldexpf(x, k); }
MB_INLINE float modf(float x, float& whole) {
  whole = trunc(x);
  return x - whole;
}
MB_INLINE float divide(float a, float b) { return a / b; }

template <class T, int N>
MB_INLINE T dot(vec<T, N> a, vec<T, N> b) {
  T sum = a[0] * b[0];
  for (int i = 1; i < N; i++) sum += a[i] * b[i];
  return sum;
}
template <class T, int N>
MB_INLINE T length(vec<T, N> v) { return sqrt(dot(v, v)); }
template <int N>
MB_INLINE bool any(vec<bool, N> v) {
  bool r = false;
  for (int i = 0; i < N; i++) r = r || v[i];
  return r;
}
template <int N>
MB_INLINE bool all(vec<bool, N> v) {
  bool r = true;
  for (int i = 0; i < N; i++) r = r && v[i];
  return r;
}

// Apple's compiler is less exact in `fast`; here both are the same.
#define MB_SAME \
  using metal::exp; using metal::exp2; using metal::exp10; using metal::log; \
  using metal::log2; using metal::log10; using metal::sqrt; using \
  metal::rsqrt; using metal::sin; using metal::cos; using metal::tan; using \
  metal::asin; using metal::acos; using metal::atan; using metal::sinh; \
  using metal::cosh; using metal::tanh; using metal::asinh; using \
  metal::acosh; using metal::atanh; using metal::floor; using metal::ceil; \
  using metal::trunc; using metal::rint; using metal::round; using \
  metal::fabs; using metal::fract; using metal::saturate; using metal::sign; \
  using metal::pow; using metal::powr; using metal::fmod; using \
  metal::atan2; using metal::copysign; using metal::fmax; using metal::fmin; \
  using metal::fdim; using metal::step; using metal::max; using metal::min; \
  using metal::clamp; using metal::abs; using metal::fma; using metal::mix; \
  using metal::smoothstep; using metal::divide; using metal::length; using \
  metal::dot;
namespace fast {
MB_SAME
}
namespace precise {
MB_SAME
}
#undef MB_SAME
}  // namespace metal
