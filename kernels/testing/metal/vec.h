// Vectors of two, three and four elements.
#pragma once
#include "half.h"

template <class T, int N>
struct vec;

#define MB_VEC(N, ALIGN, NAMES, INIT, ...)                                   \
  template <class T>                                                         \
  struct alignas(ALIGN * sizeof(T)) vec<T, N> {                              \
    T NAMES;                                                                 \
    vec() = default;                                                         \
    MB_INLINE constexpr explicit vec(T v) : INIT {}                          \
    __VA_ARGS__                                                              \
    template <class U>                                                       \
    MB_INLINE explicit vec(const vec<U, N>& o) {                             \
      for (int i = 0; i < N; i++) (*this)[i] = T(o[i]);                      \
    }                                                                        \
    MB_INLINE T& operator[](int i) { return (&x)[i]; }                       \
    MB_INLINE const T& operator[](int i) const { return (&x)[i]; }           \
  };
#define MB_COMMA ,
MB_VEC(2, 2, x MB_COMMA y, x(v) MB_COMMA y(v),
       MB_INLINE constexpr vec(T a, T b) : x(a), y(b) {})
MB_VEC(3, 4, x MB_COMMA y MB_COMMA z, x(v) MB_COMMA y(v) MB_COMMA z(v),
       MB_INLINE constexpr vec(T a, T b, T c) : x(a), y(b), z(c) {}
       MB_INLINE vec(vec<T, 2> a, T c) : x(a.x), y(a.y), z(c) {})
MB_VEC(4, 4, x MB_COMMA y MB_COMMA z MB_COMMA w, x(v) MB_COMMA y(v) MB_COMMA z(v) MB_COMMA w(v),
       MB_INLINE constexpr vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
       MB_INLINE vec(vec<T, 3> a, T d) : x(a.x), y(a.y), z(a.z), w(d) {}
       MB_INLINE vec(vec<T, 2> a, vec<T, 2> b) : x(a.x), y(a.y), z(b.x), w(b.y) {})

template <class S>
concept mb_scalar = std::is_arithmetic_v<S> || mb_is_small<S>;

#define MB_VEC_BINARY(op)                                                    \
  template <class T, int N>                                                  \
  MB_INLINE vec<T, N> operator op(vec<T, N> a, const vec<T, N>& b) {         \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op b[i]);                      \
    return a;                                                                \
  }                                                                          \
  template <class T, int N, mb_scalar S>                                     \
  MB_INLINE vec<T, N> operator op(vec<T, N> a, S b) {                        \
    for (int i = 0; i < N; i++) a[i] = T(a[i] op T(b));                      \
    return a;                                                                \
  }                                                                          \
  template <class T, int N, mb_scalar S>                                     \
  MB_INLINE vec<T, N> operator op(S a, vec<T, N> b) {                        \
    for (int i = 0; i < N; i++) b[i] = T(T(a) op b[i]);                      \
    return b;                                                                \
  }                                                                          \
  template <class T, int N, class B>                                         \
  MB_INLINE vec<T, N>& operator op##=(vec<T, N>& a, const B& b) {            \
    return a = a op b;                                                       \
  }
MB_VEC_BINARY(+)
MB_VEC_BINARY(-)
MB_VEC_BINARY(*)
MB_VEC_BINARY(/)
MB_VEC_BINARY(%)
MB_VEC_BINARY(&)
MB_VEC_BINARY(|)
MB_VEC_BINARY(^)
MB_VEC_BINARY(<<)
MB_VEC_BINARY(>>)
#undef MB_VEC_BINARY

#define MB_VEC_COMPARE(op)                                                   \
  template <class T, int N>                                                  \
  MB_INLINE vec<bool, N> operator op(const vec<T, N>& a, const vec<T, N>& b) { \
    vec<bool, N> r;                                                          \
    for (int i = 0; i < N; i++) r[i] = a[i] op b[i];                         \
    return r;                                                                \
  }
MB_VEC_COMPARE(<)
MB_VEC_COMPARE(>)
MB_VEC_COMPARE(<=)
MB_VEC_COMPARE(>=)
MB_VEC_COMPARE(==)
MB_VEC_COMPARE(!=)
#undef MB_VEC_COMPARE

template <class T, int N>
MB_INLINE vec<T, N> operator-(vec<T, N> a) {
  for (int i = 0; i < N; i++) a[i] = -a[i];
  return a;
}

#define MB_VEC_NAMES(T) \
  typedef vec<T, 2> T##2; typedef vec<T, 3> T##3; typedef vec<T, 4> T##4;
MB_VEC_NAMES(bool)
MB_VEC_NAMES(char)
MB_VEC_NAMES(uchar)
MB_VEC_NAMES(short)
MB_VEC_NAMES(ushort)
MB_VEC_NAMES(int)
MB_VEC_NAMES(uint)
MB_VEC_NAMES(long)
MB_VEC_NAMES(ulong)
MB_VEC_NAMES(float)
MB_VEC_NAMES(half)
MB_VEC_NAMES(bfloat)
#undef MB_VEC_NAMES
namespace metal { using ::vec; }
