// What the compiler's checks call, and what kernels call by way of the header.
#pragma once
#include "fibers.h"

static inline void yield(Fiber* f) {
  Launch* l = f->launch;
  uint32_t s = l->request->schedule;
  if (s == LOCKSTEP || (s == RANDOM && (l->draw() & 3) == 0)) pause_fiber(f, READY);
}

static char* module_low;

static __attribute__((noinline)) void shared_access(Fiber* f, uintptr_t a, uint32_t size,
                                                    Access access, void* code) {
  checked(f, a, size, access, offset_of(code));
  yield(f);
}

static inline void hook(const void* address, uint32_t size, Access access, void* code) {
  if (!mb_running) return;
  Fiber* f = current();
  uintptr_t a = uintptr_t(address);
  if (a - uintptr_t(f) - sizeof(Fiber) < STACK - sizeof(Fiber)) return;
  shared_access(f, a, size, access, code);
}

extern "C" {
#define MB_HOOK(name, access, N)                                             \
  void __tsan_##name##N(void* p) { hook(p, N, access, __builtin_return_address(0)); }
#define MB_HOOK_BOTH(name, N)                                                \
  void __tsan_##name##N(void* p) {                                           \
    hook(p, N, READ, __builtin_return_address(0));                           \
    hook(p, N, WRITE, __builtin_return_address(0));                          \
  }
#define MB_HOOKS(N)                                                          \
  MB_HOOK(read, READ, N)                                                     \
  MB_HOOK(write, WRITE, N)                                                   \
  MB_HOOK(unaligned_read, READ, N)                                           \
  MB_HOOK(unaligned_write, WRITE, N)                                         \
  MB_HOOK(volatile_read, READ, N)                                            \
  MB_HOOK(volatile_write, WRITE, N)                                          \
  MB_HOOK(unaligned_volatile_read, READ, N)                                  \
  MB_HOOK(unaligned_volatile_write, WRITE, N)                                \
  MB_HOOK_BOTH(read_write, N)                                                \
  MB_HOOK_BOTH(unaligned_read_write, N)
MB_HOOKS(1)
MB_HOOKS(2)
MB_HOOKS(4)
MB_HOOKS(8)
MB_HOOKS(16)
void __tsan_read_range(void* p, unsigned long n) { hook(p, n, READ, __builtin_return_address(0)); }
void __tsan_write_range(void* p, unsigned long n) {
  hook(p, n, WRITE, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, unsigned long n) {
  hook(from, n, READ, __builtin_return_address(0));
  hook(to, n, WRITE, __builtin_return_address(0));
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, unsigned long n) {
  hook(from, n, READ, __builtin_return_address(0));
  hook(to, n, WRITE, __builtin_return_address(0));
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, unsigned long n) {
  hook(to, n, WRITE, __builtin_return_address(0));
  return memset(to, value, n);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// Called at every basic block.
void __sanitizer_cov_trace_pc() {
  if (!mb_running) return;
  Fiber* f = current();
  if (++f->steps <= f->launch->request->max_steps) return;
  char me[120];
  Mark mine = {f->launch->group + 1, 0, 0, f->thread.index, 0};
  fail(f, ENDLESS, offset_of(__builtin_return_address(0)), 0, "%s {0} still runs after %llu steps",
       describe(f->launch, mine, me), (unsigned long long)f->launch->request->max_steps);
}

static void undefined(Code code, void* where, const char* what) {
  Fiber* f = current();
  char me[120];
  Mark mine = {f->launch->group + 1, 0, 0, f->thread.index, 0};
  fail(f, code, offset_of(where), 0, "%s {0} %s", describe(f->launch, mine, me), what);
}
struct TypeName {
  uint16_t kind, info;
  char text[1];
};
struct IndexData {
  const char* file;
  uint32_t line, column;
  TypeName *array, *index;
};
void __ubsan_handle_out_of_bounds(IndexData* data, void* index) {
  char text[160];
  snprintf(text, sizeof text, "uses element %lld of an array of type %.100s",
           (long long)(int32_t)(intptr_t)index, data->array->text);
  undefined(BOUNDS, __builtin_return_address(0), text);
}
void __ubsan_handle_divrem_overflow(void*, void*, void*) {
  undefined(ARITHMETIC, __builtin_return_address(0), "divides an integer by zero, or overflows");
}

void mb_barrier(uint32_t site, uint32_t flags, uint32_t simd_only) {
  Fiber* f = current();
  f->site = site;
  f->flags = flags;
  f->simd_only = simd_only;
  f->kind = simd_only ? "simdgroup_barrier" : "threadgroup_barrier";
  if (simd_only) f->launch->simd[f->thread.simdgroup].arrived |= 1u << f->thread.lane;
  pause_fiber(f, simd_only ? AT_SIMD : AT_BARRIER);
}

const mb_slots* mb_collective(uint32_t site, const char* kind, const void* value, uint32_t bytes) {
  Fiber* f = current();
  SimdGroup& g = f->launch->simd[f->thread.simdgroup];
  mb_slots* slots = &g.slots[g.parity];
  memcpy(slots->value[f->thread.lane], value, bytes);
  f->site = site;
  f->flags = 0;
  f->simd_only = 0;
  f->kind = kind;
  g.arrived |= 1u << f->thread.lane;
  pause_fiber(f, AT_SIMD);
  slots->lane = f->thread.lane;
  return slots;
}

uint32_t mb_atomic(uint32_t site, const void* address, uint32_t bytes, uint32_t write) {
  Fiber* f = current();
  yield(f);
  uintptr_t a = uintptr_t(address);
  if (a - uintptr_t(f) >= STACK)
    checked(f, a, bytes, write == 0 ? ATOMIC_LOAD : write == 1 ? ATOMIC : ATOMIC_STORE, site);
  return f->launch->request->schedule == RANDOM ? uint32_t(f->launch->draw() >> 20) : 0;
}

void* mb_threadgroup(const char* name, uint32_t id, uint64_t bytes, uint32_t item, uint32_t grain) {
  Fiber* f = current();
  Launch* l = f->launch;
  for (uint32_t i = 0; i < l->shared_count; i++)
    if (l->shared[i].id == id && l->shared[i].bytes == bytes) return l->shared[i].base;
  l->shared_bytes += bytes;
  if (l->shared_bytes > l->request->threadgroup_bytes)
    l->request->threadgroup_bytes = l->shared_bytes;
  if (l->shared_bytes > THREADGROUP_LIMIT || l->shared_count == MAX_SHARED)
    fail(f, LIMIT, 0, 0, "'%s' brings threadgroup memory to %u bytes, and Metal has %u", name,
         l->shared_bytes, THREADGROUP_LIMIT);
  Buffer& b = l->shared[l->shared_count];
  b = Buffer{};
  b.bytes = bytes;
  b.item = item;
  b.kind = MB_THREADGROUP;
  b.name = name;
  b.id = id;
  b.base = l->shared_arena + uint64_t(l->shared_count) * SHARED_SLOT + SHARED_SLOT / 2;
  b.grain = grain > 4 ? 4 : grain;
  b.cells = static_cast<Cell*>(calloc(bytes, sizeof(Cell)));
  memset(b.base, 0xff, bytes);
  l->shared_count++;
  return b.base;
}
}  // extern "C"
