// Runs a launch: threadgroup after threadgroup, one fiber per thread.
// Compiled once, without checks.
#include "hooks.h"

volatile int mb_running = 0;

uint32_t offset_of(void* code) { return uint32_t(static_cast<char*>(code) - module_low); }

static void* reserve(uint64_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

static bool fill_arena(Launch* l) {
  Request* r = l->request;
  uint64_t total = GUARD;
  for (uint32_t i = 0; i < r->count; i++)
    total += (r->buffers[i].bytes + GUARD + PAGE) / PAGE * PAGE;
  l->arena_bytes = total + MAX_SHARED * uint64_t(SHARED_SLOT);
  l->arena = static_cast<char*>(reserve(l->arena_bytes));
  if (!l->arena) return false;
  char* place = l->arena + GUARD;
  for (uint32_t i = 0; i < r->count; i++) {
    Buffer& b = r->buffers[i];
    b.base = place;
    b.grain = b.item > 4 ? 4 : b.item;
    b.filled = b.kind != MB_OUTPUT;
    b.cells = nullptr;
    if (b.kind != MB_INPUT) {
      b.cells = static_cast<Cell*>(calloc(b.bytes / b.grain + 1, sizeof(Cell)));
      if (!b.cells) return false;
    }
    if (b.bytes) memcpy(b.base, b.data, b.bytes);
    l->arguments[i] = b.base + b.lead;
    place += (b.bytes + GUARD + PAGE) / PAGE * PAGE;
  }
  l->shared_arena = l->arena + total;
  return true;
}

static bool make_stacks(Request* r, uint64_t threads) {
  if (r->stack_count >= threads) return true;
  if (r->stacks) munmap(r->stacks, r->stack_count * STACK);
  uint64_t bytes = threads * STACK;
  char* all = static_cast<char*>(reserve(bytes + STACK));
  r->stacks = nullptr;
  r->stack_count = 0;
  if (!all) return false;
  char* aligned = reinterpret_cast<char*>((uintptr_t(all) + STACK - 1) & ~(STACK - 1));
  if (aligned != all) munmap(all, aligned - all);
  munmap(aligned + bytes, all + STACK - aligned);
  for (uint64_t i = 0; i < threads; i++) mprotect(aligned + i * STACK + PAGE, PAGE, PROT_NONE);
  r->stacks = aligned;
  r->stack_count = threads;
  return true;
}

static void take_stacks(Launch* l, uint64_t threads) {
  l->stacks = l->request->stacks;
  l->stacks_bytes = threads * STACK;
  for (uint64_t i = 0; i < threads; i++) l->fiber(i)->launch = l;
}

static void place_thread(Launch* l, Fiber* f, uint32_t i, const uint32_t* at, const uint32_t* size,
                         const uint32_t* groups) {
  const Request* r = l->request;
  mb_thread& t = f->thread;
  uint32_t position[3] = {i % size[0], i / size[0] % size[1], i / (size[0] * size[1])};
  for (int k = 0; k < 3; k++) {
    t.group_position[k] = position[k];
    t.group_place[k] = at[k];
    t.grid_position[k] = at[k] * r->group[k] + position[k];
    t.group_size[k] = size[k];
    t.full_group_size[k] = r->group[k];
    t.groups[k] = groups[k];
    t.grid_size[k] = r->grid[k];
  }
  t.index = i;
  t.lane = i % 32;
  t.simdgroup = i / 32;
  t.simdgroups = (l->threads + 31) / 32;
  t.full_simdgroups = (r->group[0] * r->group[1] * r->group[2] + 31) / 32;
}

static void clear_group(Launch* l) {
  for (uint32_t i = 0; i < l->shared_count; i++) free(l->shared[i].cells);
  l->shared_count = 0;
  l->shared_bytes = 0;
  l->last = nullptr;
  l->epoch = l->device_epoch = l->shared_epoch = 0;
  memset(l->ready, 0, sizeof l->ready);
  for (auto& s : l->simd) s.arrived = s.epoch = s.parity = 0;
}

static void run_group(Launch* l, uint32_t number, const uint32_t* groups) {
  Request* r = l->request;
  uint32_t at[3] = {number % groups[0], number / groups[0] % groups[1],
                    number / (groups[0] * groups[1])};
  uint32_t size[3];
  for (int k = 0; k < 3; k++) {
    uint32_t left = r->grid[k] - at[k] * r->group[k];
    size[k] = left < r->group[k] ? left : r->group[k];
  }
  clear_group(l);
  l->group = number;
  l->threads = l->live = size[0] * size[1] * size[2];
  for (uint32_t i = 0; i < l->threads; i++) {
    reset_fiber(l->fiber(i));
    place_thread(l, l->fiber(i), i, at, size, groups);
    set_ready(l, i);
  }
  r->threads_run += l->threads;
  run_fibers(l);
}

static void run_groups(Launch* l) {
  Request* r = l->request;
  uint32_t groups[3], total = 1;
  for (int k = 0; k < 3; k++) total *= groups[k] = (r->grid[k] + r->group[k] - 1) / r->group[k];
  uint32_t* order = static_cast<uint32_t*>(malloc(total * sizeof(uint32_t)));
  for (uint32_t i = 0; i < total; i++) order[i] = r->schedule == REVERSE ? total - 1 - i : i;
  if (r->schedule == RANDOM)
    for (uint32_t i = total; i > 1; i--) {
      uint32_t j = l->draw() % i, kept = order[i - 1];
      order[i - 1] = order[j];
      order[j] = kept;
    }
  for (uint32_t i = 0; i < total && !r->code; i++) run_group(l, order[i], groups);
  free(order);
}

static void count_unwritten(Buffer& b, Request* r) {
  if (b.kind != MB_OUTPUT) return;
  for (uint64_t i = 0; i < b.bytes / b.grain; i++)
    if (!b.cells[i].write.group && !b.cells[i].atomic[0].group) r->unwritten++;
}

static void find_module() {
  Dl_info info;
  if (module_low || !dladdr(reinterpret_cast<void*>(&mb_kernel), &info)) return;
  module_low = static_cast<char*>(info.dli_fbase);
}

extern "C" int mb_run(Request* r) {
  Launch* l = static_cast<Launch*>(calloc(1, sizeof(Launch)));
  l->request = r;
  l->random = r->seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
  find_module();
  __atomic_add_fetch(&mb_running, 1, __ATOMIC_SEQ_CST);
  uint64_t threads = uint64_t(r->group[0]) * r->group[1] * r->group[2];
  if (fill_arena(l) && make_stacks(r, threads)) {
    take_stacks(l, threads);
    run_groups(l);
  } else {
    r->code = SYSTEM;
    snprintf(r->message, sizeof r->message, "no memory for the launch");
  }
  __atomic_sub_fetch(&mb_running, 1, __ATOMIC_SEQ_CST);
  for (uint32_t i = 0; i < r->count; i++) {
    Buffer& b = r->buffers[i];
    if (!r->code && b.kind != MB_INPUT) {
      memcpy(b.data, b.base, b.bytes);
      count_unwritten(b, r);
    }
    free(b.cells);
  }
  clear_group(l);
  if (l->arena) munmap(l->arena, l->arena_bytes);
  free(l);
  return r->code;
}
