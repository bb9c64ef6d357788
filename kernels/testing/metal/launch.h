// What the runtime (compiled once) and each kernel (compiled with checks) agree on.
#pragma once
#include <stdint.h>

#define MB_INLINE __attribute__((always_inline)) inline
// Code of the bench itself: its accesses are no accesses of the kernel.
#define MB_OWN __attribute__((no_sanitize("thread"), noinline))

enum { MB_INPUT = 0, MB_OUTPUT = 1, MB_FILLED = 2, MB_THREADGROUP = 3 };

// Identifies a GPU thread; the fields are those of Metal's attributes.
struct mb_thread {
  uint32_t grid_position[3], group_position[3], group_place[3];
  uint32_t group_size[3], full_group_size[3], groups[3], grid_size[3];
  uint32_t index, lane, simdgroup, simdgroups, full_simdgroups;
};

// Lanes' values in a collective operation. `active` has a bit for each lane that takes part.
struct mb_slots {
  uint32_t active, lane;
  alignas(16) char value[32][16];
};

extern "C" {
// The kernel, as generated around the body.
void mb_kernel(void* const* buffers, const mb_thread* thread);
// Services of the runtime. A site is a line of the source, see `mb_site`.
void* mb_threadgroup(const char* name, uint32_t id, uint64_t bytes, uint32_t item, uint32_t grain);
void mb_barrier(uint32_t site, uint32_t flags, uint32_t simd_only);
const mb_slots* mb_collective(uint32_t site, const char* kind, const void* value, uint32_t bytes);
// Announces an atomic access; `write` is 0 for a load, 1 for a change, 2 for
// a store. Returns a random number for spurious failures.
uint32_t mb_atomic(uint32_t site, const void* address, uint32_t bytes, uint32_t write);
}

// Line numbers of the header have this bit, and all sites the next, which no code address has.
enum : uint32_t { MB_IN_HEADER = 1u << 30, MB_SITE = 1u << 31 };
constexpr uint32_t mb_site(unsigned line, const char* file) {
  return MB_SITE | (file[0] == 'h' ? MB_IN_HEADER : 0u) | line;
}
#define MB_HERE unsigned mb_line = __builtin_LINE(), const char* mb_file = __builtin_FILE()
