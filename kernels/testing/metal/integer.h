// Integer and bit functions, `as_type`, `numeric_limits`, and what MLX puts before every kernel.
#pragma once
#include "math.h"

template <class To, class From>
MB_INLINE constexpr To as_type(From value) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of equal size");
  return __builtin_bit_cast(To, value);
}

namespace metal {
using ::as_type;

template <class T>
MB_INLINE T popcount(T x) { return T(__builtin_popcountll(std::make_unsigned_t<T>(x))); }
template <class T>
MB_INLINE T clz(T x) {
  auto u = std::make_unsigned_t<T>(x);
  return T(u ? __builtin_clzll(u) - (64 - 8 * int(sizeof(T))) : 8 * int(sizeof(T)));
}
template <class T>
MB_INLINE T ctz(T x) {
  auto u = std::make_unsigned_t<T>(x);
  return T(u ? __builtin_ctzll(u) : 8 * int(sizeof(T)));
}
template <class T>
MB_INLINE T reverse_bits(T x) {
  auto u = std::make_unsigned_t<T>(x);
  std::make_unsigned_t<T> r = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); i++, u >>= 1) r = (r << 1) | (u & 1);
  return T(r);
}
template <class T>
MB_INLINE T rotate(T x, T by) {
  auto u = std::make_unsigned_t<T>(x);
  unsigned bits = 8 * sizeof(T), k = unsigned(by) & (bits - 1);
  return T(k ? (u << k) | (u >> (bits - k)) : u);
}
template <class T>
MB_INLINE T extract_bits(T x, uint offset, uint bits) {
  return bits == 0 ? T(0) : T(T(x << (8 * sizeof(T) - offset - bits)) >> (8 * sizeof(T) - bits));
}
template <class T>
MB_INLINE T insert_bits(T base, T insert, uint offset, uint bits) {
  T mask = bits >= 8 * sizeof(T) ? T(~T(0)) : T(((T(1) << bits) - 1) << offset);
  return T((base & ~mask) | ((insert << offset) & mask));
}
MB_INLINE uint mulhi(uint a, uint b) { return uint((uint64_t(a) * b) >> 32); }
MB_INLINE int mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
MB_INLINE ulong mulhi(ulong a, ulong b) { return ulong((unsigned __int128)(a) * b >> 64); }
template <class T>
MB_INLINE T absdiff(T a, T b) { return a < b ? T(b - a) : T(a - b); }
template <class T>
MB_INLINE T mad24(T a, T b, T c) { return T(a * b + c); }
template <class T>
MB_INLINE T mul24(T a, T b) { return T(a * b); }

template <class T>
struct numeric_limits {
  static constexpr bool mb_signed = std::is_signed_v<T>;
  static constexpr T max() { return T(~min()); }
  static constexpr T lowest() { return min(); }
  static constexpr T min() {
    if constexpr (mb_signed) return T(std::make_unsigned_t<T>(1) << (8 * sizeof(T) - 1));
    else return T(0);
  }
};
#define MB_LIMITS(T, MAX, MIN, EPSILON)                                      \
  template <>                                                                \
  struct numeric_limits<T> {                                                 \
    static constexpr T max() { return T(MAX); }                              \
    static constexpr T lowest() { return T(-MAX); }                          \
    static constexpr T min() { return T(MIN); }                              \
    static constexpr T epsilon() { return T(EPSILON); }                      \
    static constexpr T infinity() { return T(INFINITY); }                    \
    static constexpr T quiet_NaN() { return T(NAN); }                        \
  };
MB_LIMITS(float, FLT_MAX, FLT_MIN, FLT_EPSILON)
MB_LIMITS(half, 65504.0f, 6.103515625e-5f, 9.765625e-4f)
MB_LIMITS(bfloat, 0x1.fep127f, FLT_MIN, 0.0078125f)
#undef MB_LIMITS
}  // namespace metal
using namespace metal;

// MLX's utilities.
template <class U>
struct Limits {
  static constexpr U max = metal::numeric_limits<U>::max();
  static constexpr U min = metal::numeric_limits<U>::min();
  static constexpr U finite_max = max;
  static constexpr U finite_min = min;
};
#define MB_MLX_LIMITS(T)                                                     \
  template <>                                                                \
  struct Limits<T> {                                                         \
    static constexpr T max = metal::numeric_limits<T>::infinity();           \
    static constexpr T min = -metal::numeric_limits<T>::infinity();          \
    static constexpr T finite_max = metal::numeric_limits<T>::max();         \
    static constexpr T finite_min = -metal::numeric_limits<T>::max();        \
  };
MB_MLX_LIMITS(float)
MB_MLX_LIMITS(half)
MB_MLX_LIMITS(bfloat)
#undef MB_MLX_LIMITS

template <class I = int64_t, class E>
inline I elem_to_loc(E element, const int* shape, const int64_t* strides, int ndim) {
  I place = 0;
  for (int i = ndim - 1; i >= 0 && element > 0; --i) {
    place += I(element % shape[i]) * I(strides[i]);
    element /= shape[i];
  }
  return place;
}
template <class T, class U>
MB_INLINE T ceildiv(T n, U m) { return (n + m - 1) / m; }
MB_INLINE float log1p(float x) { return __builtin_log1pf(x); }
#define METAL_FUNC inline
#define MLX_MTL_CONST static constexpr constant const
#define MLX_MTL_PRAGMA_UNROLL
#define STEEL_PRAGMA_UNROLL
#define STEEL_CONST static constexpr constant const
