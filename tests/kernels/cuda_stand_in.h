// CUDA's names, for 32 threads of a CPU that meet at every exchange of a warp.
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <vector>
#define __device__
#define __forceinline__ inline
#define __shared__ static

namespace cuda::std { using ::std::numeric_limits; }
struct dim { unsigned x, y, z; };
using uint3 = dim;
inline dim make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
thread_local dim threadIdx{0, 0, 0}, blockIdx{0, 0, 0};
dim blockDim{8, 2, 2}, gridDim{3, 2, 1};

struct __half {
  _Float16 value;
  __half() = default;
  explicit __half(float x) : value(x) {}
  operator float() const { return value; }
};
struct __nv_bfloat16 {
  unsigned short bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) {
    unsigned all;
    memcpy(&all, &x, 4);
    bits = (all + 0x7fffu + ((all >> 16) & 1u)) >> 16;
  }
  operator float() const {
    unsigned all = unsigned(bits) << 16;
    float x;
    memcpy(&x, &all, 4);
    return x;
  }
};

#define ROUNDED(T, op) \
  inline T operator op(T x, T y) { return T(static_cast<float>(x) op static_cast<float>(y)); }
ROUNDED(__half, +)
ROUNDED(__half, *)
ROUNDED(__nv_bfloat16, +)
ROUNDED(__nv_bfloat16, *)

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return (uint64_t(x) * y) >> 32; }
inline int __mulhi(int x, int y) { return (int64_t(x) * y) >> 32; }

std::barrier<> meeting(32);
unsigned lane() { return ((threadIdx.z * 2 + threadIdx.y) * 8 + threadIdx.x) % 32; }
template <typename T> T exchanged(T x, unsigned from) {
  static T held[32];
  held[lane()] = x;
  meeting.arrive_and_wait();
  const T y = held[from];
  meeting.arrive_and_wait();
  return y;
}
template <typename T> T __shfl_sync(unsigned, T x, unsigned by) { return exchanged(x, by % 32); }
template <typename T> T __shfl_xor_sync(unsigned, T x, unsigned by) {
  return exchanged(x, lane() ^ by);
}
template <typename T> T __shfl_up_sync(unsigned, T x, unsigned by) {
  return exchanged(x, lane() >= by ? lane() - by : lane());
}
template <typename T> T __shfl_down_sync(unsigned, T x, unsigned by) {
  return exchanged(x, lane() + by < 32 ? lane() + by : lane());
}
inline bool __any_sync(unsigned, bool x) {
  bool any = false;
  for (unsigned i = 0; i < 32; ++i) any |= exchanged(int(x), i) != 0;
  return any;
}
inline bool __all_sync(unsigned, bool x) { return !__any_sync(0, !x); }
inline void __syncthreads() { meeting.arrive_and_wait(); }
inline void __syncwarp() { meeting.arrive_and_wait(); }

std::atomic_flag busy;
template <typename T, typename F> T locked(T* at, F f) {
  while (busy.test_and_set()) {}
  const T old = *at;
  *at = f(old);
  busy.clear();
  return old;
}
#define ATOMIC(name, result) \
  template <typename T> T name(T* at, T y) { \
    return locked(at, [=](T x) -> T { return result; }); \
  }
ATOMIC(atomicAdd, x + y)
ATOMIC(atomicSub, x - y)
ATOMIC(atomicMax, x > y ? x : y)
ATOMIC(atomicMin, x < y ? x : y)
ATOMIC(atomicAnd, x & y)
ATOMIC(atomicOr, x | y)
ATOMIC(atomicXor, x ^ y)
ATOMIC(atomicExch, y)
inline unsigned atomicCAS(unsigned* at, unsigned old, unsigned y) {
  return locked(at, [=](unsigned x) { return x == old ? y : x; });
}
