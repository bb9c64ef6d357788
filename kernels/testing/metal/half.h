// `half` and `bfloat`: 16-bit floats that round to nearest even after every operation.
// Promotion as in Metal: with a float the result is a float, with an integer it stays 16 bits.
#pragma once
#include "core.h"

struct mb_half_bits {
  static constexpr float up(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 31) return __builtin_bit_cast(float, sign | 0x7f800000 | (mantissa << 13));
    if (exponent == 0) {
      float tiny = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24
      return sign ? -tiny : tiny;
    }
    return __builtin_bit_cast(float, sign | ((exponent + 112) << 23) | (mantissa << 13));
  }
  static constexpr uint16_t down(float f) {
    uint32_t x = __builtin_bit_cast(uint32_t, f), sign = (x >> 16) & 0x8000;
    x &= 0x7fffffff;
    if (x > 0x7f800000) return sign | 0x7e00 | ((x >> 13) & 0x3ff);
    if (x >= 0x477ff000) return sign | 0x7c00;
    if (x < 0x33000000) return sign;
    if (x < 0x38800000) {
      uint32_t shift = 126 - (x >> 23), m = (x & 0x7fffff) | 0x800000;
      uint32_t kept = m >> shift, rest = m & ((1u << shift) - 1), middle = 1u << (shift - 1);
      return sign | (kept + (rest > middle || (rest == middle && (kept & 1))));
    }
    return sign | ((x + 0xfff + ((x >> 13) & 1) - 0x38000000) >> 13);
  }
};

struct mb_bfloat_bits {
  static constexpr float up(uint16_t h) { return __builtin_bit_cast(float, uint32_t(h) << 16); }
  static constexpr uint16_t down(float f) {
    uint32_t x = __builtin_bit_cast(uint32_t, f);
    if ((x & 0x7fffffff) > 0x7f800000) return (x >> 16) | 0x40;
    return (x + 0x7fff + ((x >> 16) & 1)) >> 16;
  }
};

template <class Bits>
struct mb_small {
  uint16_t bits;
  mb_small() = default;
  template <class A>
    requires(std::is_arithmetic_v<A>)
  MB_INLINE constexpr mb_small(A value) : bits(Bits::down(float(value))) {}
  MB_INLINE constexpr operator float() const { return Bits::up(bits); }
  template <class A>
  MB_INLINE mb_small& operator+=(A a) { return *this = mb_small(*this + a); }
  template <class A>
  MB_INLINE mb_small& operator-=(A a) { return *this = mb_small(*this - a); }
  template <class A>
  MB_INLINE mb_small& operator*=(A a) { return *this = mb_small(*this * a); }
  template <class A>
  MB_INLINE mb_small& operator/=(A a) { return *this = mb_small(*this / a); }
  MB_INLINE mb_small& operator++() { return *this += 1; }
  MB_INLINE mb_small& operator--() { return *this -= 1; }
};
typedef mb_small<mb_half_bits> half;
typedef mb_small<mb_bfloat_bits> bfloat;
typedef half float16_t;
typedef bfloat bfloat16_t;

template <class T>
inline constexpr bool mb_is_small = std::is_same_v<T, half> || std::is_same_v<T, bfloat>;
template <class A, class B>
concept mb_mixes_small =
    (mb_is_small<A> && (std::is_same_v<A, B> || std::is_arithmetic_v<B>)) ||
    (mb_is_small<B> && std::is_arithmetic_v<A>);
template <class A, class B>
using mb_wider = std::conditional_t<
    std::is_floating_point_v<A> || std::is_floating_point_v<B>, float,
    std::conditional_t<mb_is_small<A>, A, B>>;

#define MB_BINARY(op)                                                        \
  template <class A, class B>                                                \
    requires mb_mixes_small<A, B>                                            \
  MB_INLINE constexpr mb_wider<A, B> operator op(A a, B b) {                 \
    typedef mb_wider<A, B> C;                                                \
    return C(float(C(a)) op float(C(b)));                                    \
  }
MB_BINARY(+)
MB_BINARY(-)
MB_BINARY(*)
MB_BINARY(/)
#undef MB_BINARY

#define MB_COMPARE(op)                                                       \
  template <class A, class B>                                                \
    requires mb_mixes_small<A, B>                                            \
  MB_INLINE constexpr bool operator op(A a, B b) {                           \
    typedef mb_wider<A, B> C;                                                \
    return float(C(a)) op float(C(b));                                       \
  }
MB_COMPARE(<)
MB_COMPARE(>)
MB_COMPARE(<=)
MB_COMPARE(>=)
MB_COMPARE(==)
MB_COMPARE(!=)
#undef MB_COMPARE

template <class Bits>
MB_INLINE constexpr mb_small<Bits> operator-(mb_small<Bits> a) {
  return __builtin_bit_cast(mb_small<Bits>, uint16_t(a.bits ^ 0x8000));
}
template <class Bits>
MB_INLINE constexpr mb_small<Bits> operator+(mb_small<Bits> a) { return a; }

// C++ cannot choose a type for `c ? half : float`, since each converts to the other; the bench
// wraps both sides in this where 16-bit floats occur.
template <class A, class B, class V>
MB_INLINE constexpr decltype(auto) mb_side(V&& value) {
  typedef std::remove_cvref_t<A> X;
  typedef std::remove_cvref_t<B> Y;
  if constexpr (!std::is_same_v<X, Y> && mb_mixes_small<X, Y>)
    return mb_wider<X, Y>(value);
  else
    return static_cast<V&&>(value);
}
