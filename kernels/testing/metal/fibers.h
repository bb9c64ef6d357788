// Fibers: switching, barriers, collective operations, and the schedule.
#pragma once
#include "shadow.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl mb_switch
mb_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
constexpr uint64_t SAVED_WORDS = 7, RETURN_WORD = 6, SKEW = 8;
#elif defined(__aarch64__)
asm(R"(
.text
.globl mb_switch
.p2align 2
mb_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr uint64_t SAVED_WORDS = 20, RETURN_WORD = 11, SKEW = 0;
#else
#error "the bench runs on x86-64 and on 64-bit ARM"
#endif

static inline void set_ready(Launch* l, uint32_t i) { l->ready[i / 64] |= 1ull << (i % 64); }
static inline void clear_ready(Launch* l, uint32_t i) { l->ready[i / 64] &= ~(1ull << (i % 64)); }
static inline bool is_ready(Launch* l, uint32_t i) { return l->ready[i / 64] >> (i % 64) & 1; }

void pause_fiber(Fiber* f, State state) {
  f->state = state;
  mb_switch(&f->stack_pointer, f->launch->scheduler);
}

void fail(Fiber* f, Code code, uint32_t where0, uint32_t where1, const char* format, ...) {
  Request* r = f->launch->request;
  va_list list;
  va_start(list, format);
  vsnprintf(r->message, sizeof r->message, format, list);
  va_end(list);
  r->where[0] = where0;
  r->where[1] = where1;
  r->code = code;
  for (;;) mb_switch(&f->stack_pointer, f->launch->scheduler);
}

const char* describe(const Launch* l, const Mark& m, char* text) {
  const Request* r = l->request;
  uint32_t g = m.group - 1, gx = (r->grid[0] + r->group[0] - 1) / r->group[0],
           gy = (r->grid[1] + r->group[1] - 1) / r->group[1];
  snprintf(text, 120, "thread %u of threadgroup (%u, %u, %u)", unsigned(m.thread), g % gx,
           g / gx % gy, g / gx / gy);
  return text;
}

static void fiber_main() {
  Fiber* f = current();
  mb_kernel(f->launch->arguments, &f->thread);
  for (;;) pause_fiber(f, DONE);
}

static void reset_fiber(Fiber* f) {
  uint64_t* top = reinterpret_cast<uint64_t*>(reinterpret_cast<char*>(f) + STACK - 64 - SKEW);
  uint64_t* words = top - SAVED_WORDS;
  memset(words, 0, SAVED_WORDS * 8);
  words[RETURN_WORD] = reinterpret_cast<uint64_t>(&fiber_main);
  f->stack_pointer = words;
  f->state = READY;
  f->steps = 0;
}

// A simd group's lanes that are still running.
static uint32_t lanes_alive(Launch* l, uint32_t simd) {
  uint32_t alive = 0;
  for (uint32_t i = simd * 32; i < l->threads && i < simd * 32 + 32; i++)
    if (l->fiber(i)->state != DONE) alive |= 1u << (i % 32);
  return alive;
}

static bool agree(Launch* l, uint32_t from, uint32_t to, State state) {
  Fiber* first = nullptr;
  for (uint32_t i = from; i < to; i++) {
    Fiber* f = l->fiber(i);
    if (f->state != state) continue;
    if (!first) first = f;
    if (f->site == first->site && f->kind == first->kind && f->flags == first->flags) continue;
    char a[120], b[120];
    Mark ma = {l->group + 1, 0, 0, first->thread.index, 0}, mb = {l->group + 1, 0, 0, i, 0};
    Request* r = l->request;
    r->code = DIVERGENCE;
    r->where[0] = first->site;
    r->where[1] = f->site;
    snprintf(r->message, sizeof r->message, "%s waits at %s {0}, %s at %s {1}",
             describe(l, ma, a), first->kind, describe(l, mb, b), f->kind);
    return false;
  }
  return true;
}

// Whether a thread that returned is missed by those that wait: then the launch is over.
static bool missed(Launch* l, uint32_t from, uint32_t to, State state) {
  Request* r = l->request;
  if (r->allow_exited) return false;
  Fiber *gone = nullptr, *waits = nullptr;
  for (uint32_t i = from; i < to; i++) {
    Fiber* f = l->fiber(i);
    if (f->state == DONE) gone = f;
    else if (f->state == state) waits = f;
  }
  if (!gone || !waits) return false;
  char a[120], b[120];
  Mark ma = {l->group + 1, 0, 0, waits->thread.index, 0};
  Mark mb = {l->group + 1, 0, 0, gone->thread.index, 0};
  r->code = DIVERGENCE;
  r->where[0] = waits->site;
  snprintf(r->message, sizeof r->message, "%s waits at %s {0}, which %s has left out",
           describe(l, ma, a), waits->kind, describe(l, mb, b));
  return true;
}

static bool reversed(Launch* l) { return l->request->schedule == REVERSE; }

// Lets the lanes of a SIMD group go on when all of them have arrived.
static void release_simd(Launch* l, uint32_t s) {
  SimdGroup& g = l->simd[s];
  if (!g.arrived || g.arrived != lanes_alive(l, s)) return;
  uint32_t from = s * 32, to = from + 32 < l->threads ? from + 32 : l->threads;
  if (missed(l, from, to, AT_SIMD) || !agree(l, from, to, AT_SIMD)) return;
  bool orders = !l->request->strict;
  for (uint32_t i = from; i < to; i++) {
    Fiber* f = l->fiber(i);
    if (f->state != AT_SIMD) continue;
    if (f->simd_only && (f->flags || !l->request->strict)) orders = true;
    f->state = READY;
    set_ready(l, i);
  }
  g.slots[g.parity].active = g.arrived;
  g.parity ^= 1;
  g.arrived = 0;
  if (orders) g.epoch++;
  l->cursor = reversed(l) ? to - 1 : from;
}

static void release_group(Launch* l, uint32_t waiting) {
  if (!waiting || waiting != l->live) return;
  if (missed(l, 0, l->threads, AT_BARRIER) || !agree(l, 0, l->threads, AT_BARRIER)) return;
  uint32_t flags = 0;
  for (uint32_t i = 0; i < l->threads; i++) {
    Fiber* f = l->fiber(i);
    if (f->state != AT_BARRIER) continue;
    flags = f->flags;
    f->state = READY;
    set_ready(l, i);
  }
  l->epoch++;
  if (flags & 1) l->device_epoch++;
  if (flags & 2) l->shared_epoch++;
  l->cursor = reversed(l) ? l->threads - 1 : 0;
}

// The next thread that can run, at or after `from` in the schedule's direction.
static int next_ready(Launch* l, uint32_t from) {
  uint32_t n = l->threads;
  if (is_ready(l, from)) return from;
  if (!reversed(l)) {
    uint32_t words = (n + 63) / 64;
    for (uint32_t w = 0, word = from / 64; w <= words; w++, word = (word + 1) % words) {
      uint64_t bits = l->ready[word];
      if (w == 0) bits &= ~0ull << (from % 64);
      if (bits) return word * 64 + __builtin_ctzll(bits);
    }
  } else {
    for (uint32_t i = 0; i < n; i++)
      if (is_ready(l, (from + n - i) % n)) return (from + n - i) % n;
  }
  return -1;
}

static void stuck(Launch* l) {
  Request* r = l->request;
  Fiber *first = nullptr, *second = nullptr;
  for (uint32_t i = 0; i < l->threads; i++) {
    Fiber* f = l->fiber(i);
    if (f->state == DONE) continue;
    if (!first) first = f;
    else if (f->site != first->site || f->kind != first->kind || f->state != first->state) {
      second = f;
      break;
    }
  }
  char a[120], b[120];
  r->code = DIVERGENCE;
  Mark ma = {l->group + 1, 0, 0, first->thread.index, 0};
  r->where[0] = first->site;
  if (second) {
    Mark mb = {l->group + 1, 0, 0, second->thread.index, 0};
    r->where[1] = second->site;
    snprintf(r->message, sizeof r->message,
             "%s waits at %s {0} and %s at %s {1}: neither can go on", describe(l, ma, a),
             first->kind, describe(l, mb, b), second->kind);
  } else {
    snprintf(r->message, sizeof r->message, "%s waits at %s {0}, where others do not come",
             describe(l, ma, a), first->kind);
  }
}

static void run_fibers(Launch* l) {
  Request* r = l->request;
  uint32_t waiting = 0;
  l->cursor = reversed(l) ? l->threads - 1 : 0;
  while (l->live && !r->code) {
    if (r->schedule == RANDOM) l->cursor = l->draw() % l->threads;
    int i = next_ready(l, l->cursor);
    if (i < 0) return stuck(l);
    Fiber* f = l->fiber(i);
    r->switches++;
    l->cursor = i;
    mb_switch(&l->scheduler, f->stack_pointer);
    if (r->code) return;
    if (f->state == READY) {
      if (r->schedule == LOCKSTEP) l->cursor = (i + 1) % l->threads;
      continue;
    }
    clear_ready(l, i);
    l->cursor = reversed(l) ? (i + l->threads - 1) % l->threads : (i + 1) % l->threads;
    if (f->state == DONE) {
      l->live--;
      release_simd(l, f->thread.simdgroup);
    } else if (f->state == AT_SIMD) {
      release_simd(l, f->thread.simdgroup);
    } else {
      waiting++;
    }
    if (waiting && waiting == l->live) {
      release_group(l, waiting);
      waiting = 0;
    }
  }
}
