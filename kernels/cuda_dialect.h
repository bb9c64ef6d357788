// The words of the Metal Shading Language, for CUDA. See cuda_dialect.py, which puts a kernel's own
// header behind this text and the address spaces behind both.
//
// Functions live in namespace metal and are named one by one in mlx::core::cu, where bodies are:
// there they hide CUDA's functions of the same name, overloads of both would be ambiguous.

#include <cuda/std/limits>

#define threadgroup __shared__
#define METAL_FUNC __device__ __forceinline__

#define thread_position_in_threadgroup threadIdx
#define threadgroup_position_in_grid blockIdx
#define threads_per_threadgroup blockDim
#define dispatch_threads_per_threadgroup blockDim
#define threadgroups_per_grid gridDim
#define thread_position_in_grid \
  make_uint3(blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, \
             blockIdx.z * blockDim.z + threadIdx.z)
#define threads_per_grid \
  make_uint3(gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z)
#define grid_size threads_per_grid
#define thread_index_in_threadgroup \
  ((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x)
#define simdgroups_per_threadgroup ((blockDim.x * blockDim.y * blockDim.z + 31u) / 32u)
#define dispatch_simdgroups_per_threadgroup simdgroups_per_threadgroup
#define thread_index_in_simdgroup (thread_index_in_threadgroup % 32u)
#define simdgroup_index_in_threadgroup (thread_index_in_threadgroup / 32u)
#define threads_per_simdgroup 32u
#define thread_execution_width 32u

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif
#ifndef NAN
#define NAN __int_as_float(0x7fc00000)
#endif
#ifndef FLT_MAX
#define FLT_MAX 3.402823466e+38f
#endif
#define M_LN2_F 0.693147180559945309f
#define M_LOG2E_F 1.44269504088896341f

using uint = unsigned int;
using ushort = unsigned short;
using uchar = unsigned char;
using ulong = unsigned long;
using bfloat = __nv_bfloat16;
using bfloat16_t = __nv_bfloat16;
using float16_t = __half;

namespace metal {

template <typename T>
using numeric_limits = cuda::std::numeric_limits<T>;

template <typename To, typename From>
METAL_FUNC To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
  To y;
  memcpy(&y, &x, sizeof(To));
  return y;
}

// ---- numbers: in float, and for the 16-bit types computed in float and rounded once -------------

#define MC_FLOAT_1(name, call) METAL_FUNC float name(float x) { return call(x); }
#define MC_FLOAT_2(name, call) METAL_FUNC float name(float x, float y) { return call(x, y); }
#define MC_HALF_1(T, name, call) METAL_FUNC T name(T x) { return T(call(static_cast<float>(x))); }
#define MC_HALF_2(T, name, call) \
  METAL_FUNC T name(T x, T y) { return T(call(static_cast<float>(x), static_cast<float>(y))); }
#define MC_TEST(name) \
  METAL_FUNC bool name(__half x) { return name(static_cast<float>(x)); } \
  METAL_FUNC bool name(__nv_bfloat16 x) { return name(static_cast<float>(x)); }
#define MC_ALL_1(name, call) \
  MC_FLOAT_1(name, call) MC_HALF_1(__half, name, call) MC_HALF_1(__nv_bfloat16, name, call)
#define MC_ALL_2(name, call) \
  MC_FLOAT_2(name, call) MC_HALF_2(__half, name, call) MC_HALF_2(__nv_bfloat16, name, call)

#define MC_PREDICATES \
  METAL_FUNC bool isnan(float x) { return x != x; } \
  METAL_FUNC bool isinf(float x) { return ::fabsf(x) == INFINITY; } \
  METAL_FUNC bool isfinite(float x) { return ::fabsf(x) < INFINITY; }
#define MC_IN_FLOAT(RULE) \
  RULE(sqrt, ::sqrtf) RULE(rsqrt, ::rsqrtf) RULE(floor, ::floorf) RULE(ceil, ::ceilf) \
  RULE(rint, ::rintf) RULE(round, ::roundf) RULE(trunc, ::truncf) RULE(fabs, ::fabsf) \
  RULE(abs, ::fabsf) RULE(tanh, ::tanhf)
#define MC_TRANSCENDENTAL(RULE) \
  RULE(exp, ::expf) RULE(exp2, ::exp2f) RULE(log, ::logf) RULE(log2, ::log2f) \
  RULE(log10, ::log10f) RULE(sin, ::sinf) RULE(cos, ::cosf)
#define MC_IN_TWO_FLOATS(RULE) \
  RULE(max, ::fmaxf) RULE(min, ::fminf) RULE(fmax, ::fmaxf) RULE(fmin, ::fminf) RULE(pow, ::powf) \
  RULE(fmod, ::fmodf) RULE(copysign, ::copysignf)
#define MC_IN_THREE_FLOATS \
  METAL_FUNC float fma(float x, float y, float z) { return ::fmaf(x, y, z); } \
  METAL_FUNC float clamp(float x, float low, float high) { return ::fminf(::fmaxf(x, low), high); }

template <typename T>
METAL_FUNC T max(T x, T y) { return x < y ? y : x; }
template <typename T>
METAL_FUNC T min(T x, T y) { return y < x ? y : x; }
template <typename T>
METAL_FUNC T abs(T x) { return x < T(0) ? -x : x; }

MC_IN_FLOAT(MC_ALL_1)
MC_TRANSCENDENTAL(MC_ALL_1)
MC_IN_TWO_FLOATS(MC_ALL_2)
MC_IN_THREE_FLOATS
MC_PREDICATES
MC_TEST(isnan)
MC_TEST(isinf)
MC_TEST(isfinite)

template <typename T>
METAL_FUNC T clamp(T x, T low, T high) { return metal::min(metal::max(x, low), high); }
template <typename T>
METAL_FUNC T select(T when_false, T when_true, bool which) {
  return which ? when_true : when_false;
}
METAL_FUNC float mix(float x, float y, float a) { return x + (y - x) * a; }
METAL_FUNC float saturate(float x) { return ::fminf(::fmaxf(x, 0.0f), 1.0f); }
METAL_FUNC float divide(float x, float y) { return x / y; }
METAL_FUNC uint popcount(uint x) { return __popc(x); }
METAL_FUNC uint clz(uint x) { return __clz(static_cast<int>(x)); }
METAL_FUNC uint ctz(uint x) { return x == 0 ? 32u : static_cast<uint>(__ffs(x) - 1); }
METAL_FUNC uint mulhi(uint x, uint y) { return __umulhi(x, y); }
METAL_FUNC int mulhi(int x, int y) { return __mulhi(x, y); }

namespace precise {
MC_IN_FLOAT(MC_FLOAT_1)
MC_TRANSCENDENTAL(MC_FLOAT_1)
MC_IN_TWO_FLOATS(MC_FLOAT_2)
MC_IN_THREE_FLOATS
MC_PREDICATES
METAL_FUNC float divide(float x, float y) { return x / y; }
}

namespace fast {
MC_IN_FLOAT(MC_FLOAT_1)
MC_IN_TWO_FLOATS(MC_FLOAT_2)
MC_IN_THREE_FLOATS
MC_PREDICATES
MC_FLOAT_1(exp, __expf)
MC_FLOAT_1(exp2, ::exp2f)
MC_FLOAT_1(log, __logf)
MC_FLOAT_1(log2, __log2f)
MC_FLOAT_1(log10, __log10f)
MC_FLOAT_1(sin, __sinf)
MC_FLOAT_1(cos, __cosf)
MC_FLOAT_2(divide, __fdividef)
}

// ---- barriers -----------------------------------------------------------------------------------

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
METAL_FUNC mem_flags operator|(mem_flags a, mem_flags b) {
  return static_cast<mem_flags>(static_cast<int>(a) | static_cast<int>(b));
}
METAL_FUNC void threadgroup_barrier(mem_flags) { __syncthreads(); }
METAL_FUNC void simdgroup_barrier(mem_flags) { __syncwarp(); }

// ---- collectives of a SIMD group, which all of its 32 threads reach ------------------------------

// Types narrower than a register travel as integers.
template <typename T>
struct lane_type { using type = T; };
template <> struct lane_type<bool> { using type = int; };
template <> struct lane_type<char> { using type = int; };
template <> struct lane_type<signed char> { using type = int; };
template <> struct lane_type<unsigned char> { using type = int; };
template <> struct lane_type<short> { using type = int; };
template <> struct lane_type<unsigned short> { using type = int; };
template <typename T>
using lane_t = typename lane_type<T>::type;

#define MC_SHUFFLE(name, call) \
  template <typename T> \
  METAL_FUNC T name(T x, ushort by) { \
    return static_cast<T>(call(0xffffffffu, static_cast<lane_t<T>>(x), by)); \
  }
MC_SHUFFLE(simd_shuffle, __shfl_sync)
MC_SHUFFLE(simd_broadcast, __shfl_sync)
MC_SHUFFLE(simd_shuffle_xor, __shfl_xor_sync)
MC_SHUFFLE(simd_shuffle_up, __shfl_up_sync)
MC_SHUFFLE(simd_shuffle_down, __shfl_down_sync)
template <typename T>
METAL_FUNC T simd_broadcast_first(T x) { return metal::simd_shuffle(x, 0); }
METAL_FUNC bool simd_any(bool x) { return __any_sync(0xffffffffu, x); }
METAL_FUNC bool simd_all(bool x) { return __all_sync(0xffffffffu, x); }

// The result in `x`, the partner's value in `y`; all threads get the same bits.
#define MC_REDUCE(name, result) \
  template <typename T> \
  METAL_FUNC T name(T x) { \
    _Pragma("unroll") for (int mask = 16; mask > 0; mask /= 2) { \
      const T y = metal::simd_shuffle_xor(x, mask); \
      x = result; \
    } \
    return x; \
  }
MC_REDUCE(simd_sum, x + y)
MC_REDUCE(simd_product, x * y)
MC_REDUCE(simd_max, metal::max(x, y))
MC_REDUCE(simd_min, metal::min(x, y))
MC_REDUCE(simd_and, x & y)
MC_REDUCE(simd_or, x | y)
MC_REDUCE(simd_xor, x ^ y)

#define MC_PREFIX(kind, result, nothing) \
  template <typename T> \
  METAL_FUNC T simd_prefix_inclusive_##kind(T x) { \
    const uint lane = thread_index_in_simdgroup; \
    _Pragma("unroll") for (uint by = 1; by < 32; by *= 2) { \
      const T y = metal::simd_shuffle_up(x, by); \
      if (lane >= by) x = result; \
    } \
    return x; \
  } \
  template <typename T> \
  METAL_FUNC T simd_prefix_exclusive_##kind(T x) { \
    const T y = metal::simd_shuffle_up(metal::simd_prefix_inclusive_##kind(x), 1); \
    return thread_index_in_simdgroup == 0 ? T(nothing) : y; \
  }
MC_PREFIX(sum, y + x, 0)
MC_PREFIX(product, y * x, 1)

// ---- atomics: MLX's outputs are plain pointers in CUDA, so an atomic type is the type itself -----

template <typename T>
using atomic = T;
using atomic_int = int;
using atomic_uint = unsigned int;
using atomic_float = float;
enum memory_order { memory_order_relaxed };

#define MC_ATOMIC(name, call) \
  template <typename T, typename U> \
  METAL_FUNC T name(T* at, U x, memory_order) { return call(at, static_cast<T>(x)); }
MC_ATOMIC(atomic_fetch_add_explicit, atomicAdd)
MC_ATOMIC(atomic_fetch_sub_explicit, atomicSub)
MC_ATOMIC(atomic_fetch_max_explicit, atomicMax)
MC_ATOMIC(atomic_fetch_min_explicit, atomicMin)
MC_ATOMIC(atomic_fetch_and_explicit, atomicAnd)
MC_ATOMIC(atomic_fetch_or_explicit, atomicOr)
MC_ATOMIC(atomic_fetch_xor_explicit, atomicXor)
MC_ATOMIC(atomic_exchange_explicit, atomicExch)
template <typename T, typename U>
METAL_FUNC void atomic_store_explicit(T* at, U x, memory_order) { atomicExch(at, static_cast<T>(x)); }
template <typename T>
METAL_FUNC T atomic_load_explicit(const T* at, memory_order) {
  return *const_cast<const volatile T*>(at);
}
// Of 32 bits, float among them.
template <typename T>
METAL_FUNC bool atomic_compare_exchange_weak_explicit(
    T* at, T* expected, T wanted, memory_order, memory_order) {
  const uint before = metal::as_type<uint>(*expected);
  const uint found = atomicCAS(reinterpret_cast<uint*>(at), before, metal::as_type<uint>(wanted));
  *expected = metal::as_type<T>(found);
  return found == before;
}

}  // namespace metal

namespace mlx::core::cu {

namespace fast = metal::fast;
namespace precise = metal::precise;

using metal::numeric_limits, metal::as_type, metal::mem_flags;
using metal::sqrt, metal::rsqrt, metal::floor, metal::ceil, metal::rint, metal::round, metal::trunc;
using metal::fabs, metal::abs, metal::tanh, metal::exp, metal::exp2, metal::log, metal::log2;
using metal::log10, metal::sin, metal::cos, metal::max, metal::min, metal::fmax, metal::fmin;
using metal::pow, metal::fmod, metal::copysign, metal::fma, metal::clamp, metal::select, metal::mix;
using metal::isnan, metal::isinf, metal::isfinite, metal::saturate, metal::divide, metal::popcount;
using metal::clz, metal::ctz, metal::mulhi;
using metal::threadgroup_barrier, metal::simdgroup_barrier;
using metal::simd_shuffle, metal::simd_broadcast, metal::simd_broadcast_first, metal::simd_any;
using metal::simd_shuffle_xor, metal::simd_shuffle_up, metal::simd_shuffle_down, metal::simd_all;
using metal::simd_sum, metal::simd_product, metal::simd_max, metal::simd_min, metal::simd_and;
using metal::simd_or, metal::simd_xor;
using metal::simd_prefix_inclusive_sum, metal::simd_prefix_exclusive_sum;
using metal::simd_prefix_inclusive_product, metal::simd_prefix_exclusive_product;
using metal::atomic, metal::atomic_int, metal::atomic_uint, metal::atomic_float;
using metal::memory_order, metal::memory_order_relaxed;
using metal::atomic_fetch_add_explicit, metal::atomic_fetch_sub_explicit;
using metal::atomic_fetch_max_explicit, metal::atomic_fetch_min_explicit;
using metal::atomic_fetch_and_explicit, metal::atomic_fetch_or_explicit;
using metal::atomic_fetch_xor_explicit, metal::atomic_exchange_explicit;
using metal::atomic_store_explicit, metal::atomic_load_explicit;
using metal::atomic_compare_exchange_weak_explicit;

}  // namespace mlx::core::cu
