// Calls the dialect and prints what it gives as JSON; see test_kernels_cuda_dialect.py.
#include "cuda_stand_in.h"
#include "dialect.h"
using namespace mlx::core::cu;
std::string out = "{";
void say(const char* name, const double* x, int n) {
  out += (out.size() > 1 ? ",\"" : "\"") + std::string(name) + "\":[";
  char digits[40];
  for (int i = 0; i < n; ++i) {
    snprintf(digits, 40, "%s\"%.17g\"", i ? "," : "", x[i]);
    out += digits;
  }
  out += "]";
}
#define ONE(name, ...) \
  { const double x[] = {__VA_ARGS__}; say(name, x, sizeof(x) / sizeof(double)); }
std::vector<std::string> names;
double lanes[64][32];
int total = 0, most = -100;
unsigned tries = 0;
float sum = 0.0f, kept = 1.0f;

void warp(unsigned i) {
  threadIdx = {i % 8, i / 8 % 2, i / 16};
  blockIdx = {2, 1, 0};
  const float f = i * 0.5f - 3.0f;
  int at = 0;
#define LANES(call) { if (i == 0) names[at] = #call; lanes[at++][i] = double(call); }
  LANES(thread_index_in_threadgroup)
  LANES(thread_index_in_simdgroup)
  LANES(simdgroup_index_in_threadgroup)
  LANES(thread_position_in_grid.x)
  LANES(thread_position_in_grid.y)
  LANES(thread_position_in_grid.z)
  LANES(simd_sum(f))
  LANES(simd_max(f))
  LANES(simd_min(f))
  LANES(simd_product(i < 3 ? 2 : 1))
  LANES(simd_sum(uchar(i)))
  LANES(simd_or(1u << i))
  LANES(simd_and(i | 8u))
  LANES(simd_xor(i))
  LANES(simd_prefix_inclusive_sum(f))
  LANES(simd_prefix_exclusive_sum(int(i)))
  LANES(simd_prefix_inclusive_product(1.0f + i / 16.0f))
  LANES(simd_prefix_exclusive_product(1.0f + i / 16.0f))
  LANES(simd_shuffle(int(i) * 3, ushort(31 - i)))
  LANES(simd_shuffle_xor(f, 5))
  LANES(simd_shuffle_up(f, 3))
  LANES(simd_shuffle_down(short(i), 30))
  LANES(simd_broadcast(f, 7))
  LANES(simd_broadcast_first(f))
  LANES(simd_any(i == 17))
  LANES(simd_any(i == 99))
  LANES(simd_all(i < 32))
  LANES(simd_all(i < 31))
  LANES(float(simd_max(__half(f))))
  LANES(float(simd_sum(__nv_bfloat16(1.0f))))
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  simdgroup_barrier(mem_flags::mem_none);
  atomic_fetch_add_explicit(&sum, f, memory_order_relaxed);
  atomic_fetch_add_explicit(&total, i, memory_order_relaxed);
  atomic_fetch_max_explicit(&most, int(i), memory_order_relaxed);
  float seen = atomic_load_explicit(&kept, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(
      &kept, &seen, seen + 1.0f, memory_order_relaxed, memory_order_relaxed)) {}
}

int main() {
  names.resize(64);
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 32; ++i) threads.emplace_back(warp, i);
  for (auto& thread : threads) thread.join();
  for (int i = 0; i < 64 && !names[i].empty(); ++i) say(names[i].c_str(), lanes[i], 32);
  const float nan = NAN, infinity = INFINITY;
  ONE("atomics", sum, total, most, kept)
  ONE("max", max(2, -3), max(2u, 3u), max(1.5f, nan), max(nan, 1.5f), float(max(__half(1), __half(2))))
  ONE("min", min(2, -3), min(2u, 3u), min(1.5f, nan), min(nan, -infinity), fast::min(1.0f, 2.0f))
  ONE("abs", abs(-2), abs(-2.5f), abs(3), float(abs(__nv_bfloat16(-2))), fabs(-0.5f))
  ONE("clamp", clamp(5, 0, 3), clamp(-1.0f, 0.0f, 1.0f), float(clamp(__half(2), __half(0), __half(1))))
  ONE("tests", isnan(nan), isnan(1.0f), isinf(-infinity), isinf(nan), isfinite(nan), isfinite(1e38f),
      isnan(__half(nan)), precise::isinf(infinity), fast::isfinite(infinity))
  ONE("exp", exp(1.0f), metal::exp(-infinity), fast::exp(0.0f), precise::log(2.0f), exp2(3.0f), log2(8.0f),
      float(exp(__half(1.0f))), float(log(__nv_bfloat16(2.0f))))
  ONE("roots", sqrt(2.0f), rsqrt(4.0f), pow(2.0f, 0.5f), fma(2.0f, 3.0f, 1.0f), floor(-1.5f), ceil(-1.5f),
      rint(2.5f), round(2.5f), trunc(-1.7f), fmod(5.5f, 2.0f), copysign(2.0f, -0.0f), saturate(3.0f))
  ONE("bits", popcount(255u), clz(1u), clz(0u), ctz(8u), ctz(0u), mulhi(1u << 31, 6u), mulhi(-1, 5),
      select(1, 2, true), select(1, 2, false), mix(1.0f, 3.0f, 0.25f), fast::divide(1.0f, 4.0f))
  ONE("as_type", as_type<uint>(1.0f), as_type<float>(0x40490fdbu), as_type<int>(-0.0f),
      as_type<ushort>(__nv_bfloat16(1.0f)))
  ONE("limits", numeric_limits<float>::max(), metal::numeric_limits<int>::lowest())
  printf("%s}\n", out.c_str());
}
