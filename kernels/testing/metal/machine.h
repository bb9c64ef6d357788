// The state of one launch: buffers with guard zones, fibers with stacks, groups.
#pragma once
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "launch.h"

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

enum Code { FINE = 0, BOUNDS, RACE, UNINITIALIZED, DIVERGENCE, ENDLESS, LIMIT, SYSTEM, ARITHMETIC };
enum Schedule { FORWARD = 0, REVERSE, LOCKSTEP, RANDOM };

// Who touched memory, and when. `group` is 0 for nobody.
struct Mark {
  uint32_t group, where, epoch;
  uint32_t thread : 10, simd_epoch : 22;
};

// What is known of one piece of memory: the last write and, of the accesses since, two of each kind
// that nothing orders (plain reads, atomic reads, atomic changes).
struct Cell {
  Mark write, read[2], load[2], atomic[2];
};

struct Buffer {
  char* data;      // the caller's bytes, copied in and, for outputs, out
  uint64_t bytes;
  uint64_t lead;   // bytes before element 0 (negative strides)
  uint32_t item;   // bytes per element
  uint32_t kind;
  const char* name;
  // Below: the runtime's own.
  char* base;
  uint32_t grain;  // bytes per cell
  uint32_t filled;
  Cell* cells;
  uint32_t id;
};

struct Request {
  Buffer* buffers;
  uint32_t count, schedule;
  uint32_t grid[3], group[3];
  uint64_t seed, max_steps;
  uint32_t strict, allow_exited, allow_races, code;
  uint32_t where[2];  // code addresses or sites for the message's {0} and {1}
  char message[1000];
  uint64_t threads_run, switches, accesses, threadgroup_bytes, unwritten;
  char* stacks;  // kept by the caller between launches
  uint64_t stack_count;
};

enum State : uint32_t { READY, AT_BARRIER, AT_SIMD, DONE };
struct Launch;

// Lives at the low end of its stack, whose size is a power of two, so that code finds its own
// fiber from the stack pointer.
struct Fiber {
  Launch* launch;
  void* stack_pointer;
  State state;
  uint32_t site, flags, simd_only;
  const char* kind;
  uint64_t steps;
  mb_thread thread;
};

struct SimdGroup {
  uint32_t arrived, epoch, parity;
  mb_slots slots[2];
};

constexpr uint64_t STACK = 256 * 1024, PAGE = 16384, GUARD = 16 << 20;
constexpr uint32_t MAX_THREADS = 1024, MAX_SHARED = 64, SHARED_SLOT = 1 << 20,
                   THREADGROUP_LIMIT = 32768;

struct Launch {
  Request* request;
  char* arena;
  uint64_t arena_bytes;
  char* stacks;
  uint64_t stacks_bytes;
  uint32_t threads, live, cursor;
  uint32_t group, epoch, device_epoch, shared_epoch, shared_bytes, shared_count;
  uint64_t random;
  void* scheduler;
  uint64_t ready[MAX_THREADS / 64];
  SimdGroup simd[MAX_THREADS / 32];
  Buffer shared[MAX_SHARED];
  char* shared_arena;
  Buffer* last;
  void* arguments[256];

  Fiber* fiber(uint32_t i) { return reinterpret_cast<Fiber*>(stacks + i * STACK); }
  uint64_t draw() {
    random ^= random << 13;
    random ^= random >> 7;
    return random ^= random << 17;
  }
};

extern volatile int mb_running;

inline Fiber* current() {
  return reinterpret_cast<Fiber*>(uintptr_t(__builtin_frame_address(0)) & ~(STACK - 1));
}

extern "C" void mb_switch(void** save, void* load) asm("mb_switch");

// Leaves the fiber for good: the launch is over.
[[noreturn]] void fail(Fiber* f, Code code, uint32_t where0, uint32_t where1, const char* format,
                       ...) __attribute__((format(printf, 5, 6)));
void pause_fiber(Fiber* f, State state);
const char* describe(const Launch* l, const Mark& m, char* text);
uint32_t offset_of(void* code);
