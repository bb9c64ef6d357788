// Barriers and the collective operations of SIMD groups (32 lanes) and quads.
#pragma once
#include "integer.h"

namespace metal {
enum class mem_flags : uint {
  mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4,
  mem_threadgroup_imageblock = 8, mem_object_data = 16
};
MB_INLINE constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(uint(a) | uint(b));
}
MB_OWN inline void threadgroup_barrier(mem_flags flags, MB_HERE) {
  mb_barrier(mb_site(mb_line, mb_file), uint(flags), 0);
}
MB_OWN inline void simdgroup_barrier(mem_flags flags, MB_HERE) {
  mb_barrier(mb_site(mb_line, mb_file), uint(flags), 1);
}

// What the lanes gave: `has(i)` where lane i takes part.
template <class T>
struct mb_lanes {
  const mb_slots* slots;
  uint own;
  MB_OWN mb_lanes(const char* kind, T mine, unsigned line, const char* file)
      : slots(mb_collective(mb_site(line, file), kind, &mine, sizeof(T))), own(slots->lane) {
    static_assert(sizeof(T) <= 16, "collective operations take at most 16 bytes");
  }
  MB_OWN bool has(uint i) const { return i < 32 && (slots->active >> i & 1); }
  MB_OWN uint lane() const { return own; }
  MB_OWN T operator[](uint i) const {
    T value;
    // An absent lane's value is undefined; all bits set is NaN for every float.
    if (has(i)) __builtin_memcpy(&value, slots->value[i], sizeof(T));
    else __builtin_memset(&value, 0xff, sizeof(T));
    return value;
  }
};

// A tree over lanes a, a^1, a^2, ...: the order of a butterfly of exchanges, the same in each lane.
template <class T, class F>
MB_OWN T mb_tree(const mb_lanes<T>& lanes, uint from, uint count, F combine) {
  T partial[32];
  bool has[32];
  for (uint i = 0; i < count; i++) {
    has[i] = lanes.has(from + i);
    partial[i] = lanes[from + i];
  }
  for (uint step = 1; step < count; step *= 2)
    for (uint i = 0; i < count; i += 2 * step) {
      if (has[i] && has[i + step]) partial[i] = combine(partial[i], partial[i + step]);
      else if (has[i + step]) partial[i] = partial[i + step];
      has[i] = has[i] || has[i + step];
    }
  return partial[0];
}

#define MB_REDUCE(name, expression)                                          \
  template <class T>                                                         \
  MB_OWN T simd_##name(T x, MB_HERE) {                                       \
    mb_lanes<T> lanes("simd_" #name, x, mb_line, mb_file);                   \
    return mb_tree(lanes, 0, 32, [](T a, T b) MB_OWN { return T(expression); }); \
  }                                                                          \
  template <class T>                                                         \
  MB_OWN T quad_##name(T x, MB_HERE) {                                       \
    mb_lanes<T> lanes("quad_" #name, x, mb_line, mb_file);                   \
    return mb_tree(lanes, lanes.lane() & ~3u, 4, [](T a, T b) MB_OWN { return T(expression); }); \
  }
MB_REDUCE(sum, a + b)
MB_REDUCE(product, a * b)
MB_REDUCE(max, metal::max(a, b))
MB_REDUCE(min, metal::min(a, b))
MB_REDUCE(and, a & b)
MB_REDUCE(or, a | b)
MB_REDUCE(xor, a ^ b)
#undef MB_REDUCE

#define MB_PREFIX(name, start, expression)                                   \
  template <class T>                                                         \
  MB_OWN T simd_prefix_inclusive_##name(T x, MB_HERE) {                      \
    mb_lanes<T> lanes("simd_prefix_inclusive_" #name, x, mb_line, mb_file);  \
    T a = T(start);                                                          \
    for (uint i = 0; i <= lanes.lane(); i++)                                 \
      if (lanes.has(i)) { T b = lanes[i]; a = T(expression); }               \
    return a;                                                                \
  }                                                                          \
  template <class T>                                                         \
  MB_OWN T simd_prefix_exclusive_##name(T x, MB_HERE) {                      \
    mb_lanes<T> lanes("simd_prefix_exclusive_" #name, x, mb_line, mb_file);  \
    T a = T(start);                                                          \
    for (uint i = 0; i < lanes.lane(); i++)                                  \
      if (lanes.has(i)) { T b = lanes[i]; a = T(expression); }               \
    return a;                                                                \
  }
MB_PREFIX(sum, 0, a + b)
MB_PREFIX(product, 1, a * b)
#undef MB_PREFIX

// Each takes the value of lane `from`; `keep` says when a lane keeps its own.
#define MB_SHUFFLE(name, from, keep)                                         \
  template <class T>                                                         \
  MB_OWN T simd_##name(T x, uint k, MB_HERE) {                               \
    mb_lanes<T> lanes("simd_" #name, x, mb_line, mb_file);                   \
    uint lane = lanes.lane();                                                \
    return (keep) ? x : lanes[from];                                         \
  }                                                                          \
  template <class T>                                                         \
  MB_OWN T quad_##name(T x, uint k, MB_HERE) {                               \
    mb_lanes<T> lanes("quad_" #name, x, mb_line, mb_file);                   \
    uint lane = lanes.lane();                                                \
    return ((from) & ~3u) != (lane & ~3u) ? x : lanes[from];                 \
  }
MB_SHUFFLE(shuffle_xor, lane ^ k, false)
MB_SHUFFLE(shuffle_up, lane - k, lane < k)
MB_SHUFFLE(shuffle_down, lane + k, lane + k > 31)
#undef MB_SHUFFLE
#define MB_PICK(name, from)                                                  \
  template <class T>                                                         \
  MB_OWN T name(T x, uint k, MB_HERE) {                                      \
    mb_lanes<T> lanes(#name, x, mb_line, mb_file);                           \
    return lanes[from];                                                      \
  }
MB_PICK(simd_shuffle, k)
MB_PICK(simd_broadcast, k)
MB_PICK(simd_shuffle_rotate_up, (lanes.lane() - k) & 31)
MB_PICK(simd_shuffle_rotate_down, (lanes.lane() + k) & 31)
MB_PICK(quad_shuffle, (lanes.lane() & ~3u) + (k & 3))
MB_PICK(quad_broadcast, (lanes.lane() & ~3u) + (k & 3))
#undef MB_PICK
template <class T>
MB_OWN T simd_shuffle_and_fill_up(T x, T fill, uint k, MB_HERE) {
  mb_lanes<T> lanes("simd_shuffle_and_fill_up", x, mb_line, mb_file);
  uint lane = lanes.lane();
  // Taken now: a lane that runs ahead may write the same slots in the operation after the next.
  T value = lanes[lane - k];
  mb_lanes<T> fills("simd_shuffle_and_fill_up", fill, mb_line, mb_file);
  return lane < k ? fills[32 + lane - k] : value;
}
template <class T>
MB_OWN T simd_shuffle_and_fill_down(T x, T fill, uint k, MB_HERE) {
  mb_lanes<T> lanes("simd_shuffle_and_fill_down", x, mb_line, mb_file);
  uint from = lanes.lane() + k;
  T value = lanes[from];
  mb_lanes<T> fills("simd_shuffle_and_fill_down", fill, mb_line, mb_file);
  return from > 31 ? fills[from - 32] : value;
}
template <class T>
MB_OWN T simd_broadcast_first(T x, MB_HERE) {
  mb_lanes<T> lanes("simd_broadcast_first", x, mb_line, mb_file);
  return lanes[__builtin_ctz(lanes.slots->active)];
}

struct simd_vote {
  typedef ulong vote_t;
  vote_t bits, active;
  MB_OWN explicit operator vote_t() const { return bits; }
  MB_OWN bool all() const { return bits == active; }
  MB_OWN bool any() const { return bits != 0; }
};
MB_OWN inline simd_vote mb_vote(const char* kind, bool yes, unsigned line, const char* file) {
  mb_lanes<bool> lanes(kind, yes, line, file);
  simd_vote vote = {0, lanes.slots->active};
  for (uint i = 0; i < 32; i++)
    if (lanes.has(i) && lanes[i]) vote.bits |= 1ul << i;
  return vote;
}
MB_OWN inline simd_vote simd_ballot(bool yes, MB_HERE) {
  return mb_vote("simd_ballot", yes, mb_line, mb_file);
}
MB_OWN inline bool simd_all(bool yes, MB_HERE) {
  return mb_vote("simd_all", yes, mb_line, mb_file).all();
}
MB_OWN inline bool simd_any(bool yes, MB_HERE) {
  return mb_vote("simd_any", yes, mb_line, mb_file).any();
}
MB_OWN inline simd_vote simd_active_threads_mask(MB_HERE) {
  return mb_vote("simd_active_threads_mask", true, mb_line, mb_file);
}
MB_OWN inline bool simd_is_first(MB_HERE) {
  mb_lanes<bool> lanes("simd_is_first", true, mb_line, mb_file);
  return lanes.lane() == uint(__builtin_ctz(lanes.slots->active));
}
}  // namespace metal
