// Atomic operations, all of them relaxed as in Metal: they order nothing but themselves.
#pragma once
#include "simd.h"

namespace metal {
enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release,
                    memory_order_acq_rel, memory_order_seq_cst };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup,
                    thread_scope_device };

template <class T>
struct atomic {
  T mb_value;
  atomic() = default;
  // Metal has no implicit load or store.
  atomic(const atomic&) = delete;
  atomic& operator=(const atomic&) = delete;
};
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<ulong> atomic_ulong;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;

// Fibers switch only in the bench's own code, so plain operations are atomic here.
#define MB_ATOMIC(name, expression)                                          \
  template <class T, class U>                                                \
  MB_OWN T atomic_##name##_explicit(volatile atomic<T>* p, U given, memory_order, MB_HERE) { \
    mb_atomic(mb_site(mb_line, mb_file), const_cast<atomic<T>*>(p), sizeof(T), 1); \
    T old = p->mb_value, v = T(given);                                       \
    (void)v;                                                                 \
    p->mb_value = T(expression);                                             \
    return old;                                                              \
  }
MB_ATOMIC(exchange, v)
MB_ATOMIC(fetch_add, old + v)
MB_ATOMIC(fetch_sub, old - v)
MB_ATOMIC(fetch_max, metal::max(old, v))
MB_ATOMIC(fetch_min, metal::min(old, v))
MB_ATOMIC(fetch_and, old & v)
MB_ATOMIC(fetch_or, old | v)
MB_ATOMIC(fetch_xor, old ^ v)
#undef MB_ATOMIC

template <class T>
MB_OWN T atomic_load_explicit(const volatile atomic<T>* p, memory_order, MB_HERE) {
  mb_atomic(mb_site(mb_line, mb_file), const_cast<atomic<T>*>(p), sizeof(T), 0);
  return p->mb_value;
}
template <class T, class U>
MB_OWN void atomic_store_explicit(volatile atomic<T>* p, U v, memory_order, MB_HERE) {
  mb_atomic(mb_site(mb_line, mb_file), const_cast<atomic<T>*>(p), sizeof(T), 2);
  p->mb_value = T(v);
}
template <class T, class U>
MB_OWN bool atomic_compare_exchange_weak_explicit(
    volatile atomic<T>* p, T* expected, U desired, memory_order, memory_order, MB_HERE) {
  uint32_t chance =
      mb_atomic(mb_site(mb_line, mb_file), const_cast<atomic<T>*>(p), sizeof(T), 1);
  T now = p->mb_value;
  // Weak: it may fail though the values are equal, and does so at random in random schedules.
  bool equal = __builtin_memcmp(&now, expected, sizeof(T)) == 0 && (chance & 7) != 7;
  if (equal) p->mb_value = T(desired);
  else *expected = now;
  return equal;
}
}  // namespace metal
