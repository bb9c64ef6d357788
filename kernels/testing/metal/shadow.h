// What every access is held to: bounds, what was written before, and who else was there.
#pragma once
#include "machine.h"

enum Access { READ, WRITE, ATOMIC_LOAD, ATOMIC, ATOMIC_STORE };

// Whether what `m` did comes before what a thread with mark `now` does.
static inline bool ordered(const Mark& m, const Mark& now) {
  if (m.group != now.group) return m.group == 0;
  if (m.epoch != now.epoch || m.thread == now.thread) return true;
  return (m.thread >> 5) == (now.thread >> 5) && m.simd_epoch != now.simd_epoch;
}

static const Mark* clash(const Mark* marks, int n, const Mark& now) {
  for (int i = 0; i < n; i++)
    if (!ordered(marks[i], now)) return &marks[i];
  return nullptr;
}

// How far apart two unordered threads are: what orders the near does not order the far.
static inline int distance(const Mark& a, const Mark& b) {
  return a.group != b.group ? 3 : (a.thread >> 5) != (b.thread >> 5) ? 2 : a.thread != b.thread;
}

// Two of all unordered marks are enough when they are the two furthest apart: whoever comes later
// and is unordered with any of them is unordered with one of the two.
static inline void remember(Mark* two, const Mark& now) {
  for (int i = 0; i < 2; i++)
    if (two[i].group && ordered(two[i], now)) two[i].group = 0;
  if (!two[0].group) two[0] = two[1], two[1].group = 0;
  if (!two[0].group) two[0] = now;
  else if (!two[1].group || distance(two[0], now) > distance(two[0], two[1])) two[1] = now;
}

static const char* const VERB[] = {"reads", "writes", "atomically reads", "atomically changes",
                                   "atomically writes"};
static const char* const DID[] = {"read", "wrote", "atomically read", "atomically changed"};

static void race(Fiber* f, const Buffer* b, uint64_t offset, Access access, uint32_t where,
                 const Mark& other, int did) {
  if (f->launch->request->allow_races) return;
  char me[120], it[120];
  Mark mine = {f->launch->group + 1, 0, 0, f->thread.index, 0};
  fail(f, RACE, where, other.where,
       "%s[%llu]: %s {0} %s what %s {1} %s, with nothing to order the two", b->name,
       (unsigned long long)(offset / b->item), describe(f->launch, mine, me), VERB[access],
       describe(f->launch, other, it), DID[did]);
}

static inline void touch(Fiber* f, const Buffer* b, uint64_t offset, Cell* c, Access access,
                         const Mark& now) {
  bool uses = access != WRITE && access != ATOMIC_STORE;
  if (uses && !b->filled && !c->write.group && !c->atomic[0].group) {
    char me[120];
    Mark mine = {f->launch->group + 1, 0, 0, f->thread.index, 0};
    fail(f, UNINITIALIZED, now.where, 0, "%s[%llu]: %s {0} %s what nothing has written%s", b->name,
         (unsigned long long)(offset / b->item), describe(f->launch, mine, me), VERB[access],
         b->kind == MB_THREADGROUP ? " in this threadgroup" : "");
  }
  if (!ordered(c->write, now)) race(f, b, offset, access, now.where, c->write, WRITE);
  const Mark* other;
  if (access == WRITE || access == ATOMIC || access == ATOMIC_STORE)
    if ((other = clash(c->read, 2, now))) race(f, b, offset, access, now.where, *other, READ);
  if (access == WRITE || access == READ)
    if ((other = clash(c->atomic, 2, now))) race(f, b, offset, access, now.where, *other, ATOMIC);
  if (access == WRITE)
    if ((other = clash(c->load, 2, now)))
      race(f, b, offset, access, now.where, *other, ATOMIC_LOAD);
  if (access == WRITE) *c = Cell{now, {}, {}, {}};
  else remember(access == READ ? c->read : access == ATOMIC_LOAD ? c->load : c->atomic, now);
}

// From now on a cell per byte: something touches parts of elements.
static void split(Buffer* b) {
  uint64_t n = b->bytes / b->grain;
  Cell* fine = static_cast<Cell*>(calloc(b->bytes ? b->bytes : 1, sizeof(Cell)));
  if (!fine) return;
  for (uint64_t i = 0; i < n * b->grain; i++) fine[i] = b->cells[i / b->grain];
  free(b->cells);
  b->cells = fine;
  b->grain = 1;
}

static Buffer* find(Launch* l, uintptr_t a) {
  Buffer* b = l->last;
  if (b && a - uintptr_t(b->base) < b->bytes) return b;
  for (uint32_t i = 0; i < l->request->count; i++) {
    b = &l->request->buffers[i];
    if (a - uintptr_t(b->base) < b->bytes) return l->last = b;
  }
  for (uint32_t i = 0; i < l->shared_count; i++) {
    b = &l->shared[i];
    if (a - uintptr_t(b->base) < b->bytes) return l->last = b;
  }
  return nullptr;
}

static void stray(Fiber* f, uintptr_t a, uint32_t size, Access access, uint32_t where) {
  Launch* l = f->launch;
  char me[120];
  Mark mine = {l->group + 1, 0, 0, f->thread.index, 0};
  describe(l, mine, me);
  if (a - uintptr_t(l->stacks) < l->stacks_bytes)
    fail(f, BOUNDS, where, 0, "%s {0} %s private memory of another thread (%u bytes)", me,
         VERB[access], size);
  Buffer* near = nullptr;
  uint64_t best = GUARD;
  auto consider = [&](Buffer* b) {
    uintptr_t low = uintptr_t(b->base), high = low + b->bytes;
    uint64_t gap = a < low ? low - a : a >= high ? a - high : 0;
    if (gap < best) best = gap, near = b;
  };
  for (uint32_t i = 0; i < l->request->count; i++) consider(&l->request->buffers[i]);
  for (uint32_t i = 0; i < l->shared_count; i++) consider(&l->shared[i]);
  if (!near)
    fail(f, BOUNDS, where, 0, "%s {0} %s %u bytes at %p, far from every buffer", me, VERB[access],
         size, (void*)a);
  int64_t byte = int64_t(a) - int64_t(near->base) - int64_t(near->lead), item = near->item;
  int64_t index = byte >= 0 ? byte / item : -((item - 1 - byte) / item);
  fail(f, BOUNDS, where, 0,
       "%s[%lld]: %s {0} %s %u bytes outside of the buffer, which has %llu elements",
       near->name, (long long)index, me, VERB[access], size,
       (unsigned long long)(near->bytes / near->item));
}

// The kernel's own constants lie in its module.
static bool in_module(uintptr_t a) {
  Dl_info here, there;
  return dladdr(reinterpret_cast<void*>(&mb_kernel), &here) &&
         dladdr(reinterpret_cast<void*>(a), &there) && here.dli_fbase == there.dli_fbase;
}

static void checked(Fiber* f, uintptr_t a, uint32_t size, Access access, uint32_t where) {
  Launch* l = f->launch;
  Buffer* b = find(l, a);
  l->request->accesses++;
  if (!b && access == READ && in_module(a)) return;
  if (!b || a + size > uintptr_t(b->base) + b->bytes) return stray(f, a, size, access, where);
  bool reads = access == READ || access == ATOMIC_LOAD;
  if (b->kind == MB_INPUT) {
    if (reads) return;
    char me[120];
    Mark mine = {l->group + 1, 0, 0, f->thread.index, 0};
    fail(f, BOUNDS, where, 0, "%s[%llu]: %s {0} %s an input", b->name,
         (unsigned long long)((a - uintptr_t(b->base)) / b->item), describe(l, mine, me),
         VERB[access]);
  }
  uint64_t offset = a - uintptr_t(b->base);
  if (b->grain > 1 && ((offset | size) & (b->grain - 1))) split(b);
  Mark now;
  now.group = l->group + 1;
  now.where = where;
  now.epoch = !l->request->strict ? l->epoch
              : b->kind == MB_THREADGROUP ? l->shared_epoch : l->device_epoch;
  now.thread = f->thread.index;
  now.simd_epoch = l->simd[f->thread.simdgroup].epoch;
  for (uint64_t o = offset; o < offset + size; o += b->grain)
    touch(f, b, o, &b->cells[o / b->grain], access, now);
}
