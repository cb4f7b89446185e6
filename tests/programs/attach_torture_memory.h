// Workers that allocate: every entry point, canaries and patterns in each block, blocks handed to other threads, exceptions, long jumps,
// walks that hold the arenas' and the loader's locks.
#pragma once
#include "attach_torture.h"

#include <csetjmp>
#include <link.h>
#include <malloc.h>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace torture {

// How a block must be given back.
enum Flavour : uint8_t { c_block, new_block, new_array, new_aligned };

struct Block {
  unsigned char *at = nullptr;
  size_t size = 0;
  uint64_t pattern = 0;
  Flavour flavour = c_block;
};

inline uint64_t pattern_word(uint64_t pattern, size_t i) { return (pattern ^ i) * 0x9e3779b97f4a7c15ull; }

// Canaries at both ends, and words at steps over the contents: every byte of small blocks, samples of large ones.
inline size_t step_of(size_t size) { return size > 65536 ? 509 : size > 4096 ? 61 : 1; }
inline void fill(const Block &b) {
  for (size_t i = 0; i < b.size; i += step_of(b.size)) b.at[i] = (unsigned char)pattern_word(b.pattern, i);
  if (b.size) b.at[b.size - 1] = 0xc5;
}
inline void check(const Block &b, size_t upto) {
  for (size_t i = 0; i < upto; i += step_of(b.size)) {
    unsigned char wanted = i == b.size - 1 ? 0xc5 : (unsigned char)pattern_word(b.pattern, i);
    if (b.at[i] != wanted) return fail("block %p of %zu: byte %zu is %02x, not %02x", (void *)b.at, b.size, i, b.at[i], wanted);
  }
  if (upto == b.size && b.size && b.at[b.size - 1] != 0xc5) fail("block %p of %zu: its end is overwritten", (void *)b.at, b.size);
}

inline size_t some_size(Random &random) {
  switch (random.below(32)) {
  case 0: return 1;
  case 1: return 200000 + random.below(600000); // by mmap
  case 2: case 3: return 4096 + random.below(30000);
  default: return 1 + random.below(700);
  }
}

inline Block made(void *at, size_t size, Flavour flavour, size_t align, Random &random) {
  Block b{(unsigned char *)at, size, random.next(), flavour};
  count.allocations.fetch_add(1, std::memory_order_relaxed);
  if (!at) return fail("an allocation of %zu failed", size), Block{};
  if ((uintptr_t)at % align) fail("block %p is not aligned to %zu", at, align);
  if (flavour == c_block && malloc_usable_size(at) < size) fail("block %p of %zu: usable %zu", at, size, malloc_usable_size(at));
  fill(b);
  return b;
}

inline Block allocate(Random &random) {
  size_t n = some_size(random), align = (size_t)16 << random.below(6), page = 4096;
  void *out = nullptr;
  switch (random.below(14)) {
  case 0: case 1: case 2: return made(malloc(n), n, c_block, 16, random);
  case 3: {
    unsigned char *p = (unsigned char *)calloc(n / 8 + 1, 8);
    n = (n / 8 + 1) * 8;
    for (size_t i = 0; p && i < n; i += step_of(n))
      if (p[i]) { fail("calloc's block %p of %zu: byte %zu is %02x", (void *)p, n, i, p[i]); break; }
    return made(p, n, c_block, 16, random);
  }
  case 4: return made(realloc(nullptr, n), n, c_block, 16, random);
  case 5: return made(reallocarray(nullptr, 3, n), 3 * n, c_block, 16, random);
  case 6: {
    int r = posix_memalign(&out, align, n);
    if (r) fail("posix_memalign(%zu, %zu) is %d", align, n, r);
    return made(r ? nullptr : out, n, c_block, align, random);
  }
  case 7: return made(memalign(align, n), n, c_block, align, random);
  case 8: return made(aligned_alloc(align, n), n, c_block, align, random);
  case 9: return random.below(2) ? made(valloc(n), n, c_block, page, random) : made(pvalloc(n), n, c_block, page, random);
  case 10: return made(::operator new(n), n, new_block, 16, random);
  case 11: return made(::operator new[](n), n, new_array, 16, random);
  case 12: return made(::operator new(n, std::align_val_t(64)), n, new_aligned, 64, random);
  default: return made(::operator new(n, std::nothrow), n, new_block, 16, random);
  }
}

inline void release(Block &b) {
  if (!b.at) return;
  check(b, b.size);
  errno = 4711;
  switch (b.flavour) {
  case c_block: free(b.at); break;
  case new_block: ::operator delete(b.at, b.size); break;
  case new_array: ::operator delete[](b.at); break;
  case new_aligned: ::operator delete(b.at, std::align_val_t(64)); break;
  }
  if (errno != 4711) fail("free changed errno to %d", errno);
  b.at = nullptr;
  count.frees.fetch_add(1, std::memory_order_relaxed);
}

inline void resize(Block &b, Random &random) {
  if (!b.at || b.flavour != c_block) return;
  size_t n = some_size(random), kept = n < b.size ? n : b.size;
  void *moved = random.below(2) ? realloc(b.at, n) : reallocarray(b.at, 1, n);
  if (!moved) return fail("realloc to %zu failed", n);
  Block before = b;
  before.at = (unsigned char *)moved;
  check(before, kept == b.size ? kept : kept - 1); // a block cut short has lost its end's canary
  b = made(moved, n, c_block, 16, random);
}

// Allocations that must fail, and say so as they do without anybody watching.
inline void must_fail(Random &random) {
  volatile size_t huge = (size_t)PTRDIFF_MAX + 1 + random.below(1000);
  errno = 0;
  void *p = malloc(huge);
  if (p || errno != ENOMEM) fail("malloc of too much gave %p, errno %d", p, errno);
  errno = 0;
  p = reallocarray(nullptr, huge, 3);
  if (p || errno != ENOMEM) fail("reallocarray of too much gave %p, errno %d", p, errno);
  if (posix_memalign(&p, 3, 8) != EINVAL) fail("posix_memalign took a wrong alignment");
  bool caught = false;
  try {
    p = ::operator new(huge);
  } catch (const std::bad_alloc &) {
    caught = true;
  }
  if (!caught) fail("operator new of too much did not throw");
  count.failed_allocations.fetch_add(4, std::memory_order_relaxed);
}

inline void step_memory(Worker &w) {
  if (!w.own) w.own = new std::vector<Block>(256);
  auto &held = *(std::vector<Block> *)w.own;
  for (int i = 0; i < 64; i++) {
    Block &b = held[w.random.below(held.size())];
    if (b.at && w.random.below(3) == 0) resize(b, w.random);
    else if (b.at) release(b);
    else b = allocate(w.random);
  }
  if (w.random.below(16) == 0) must_fail(w.random);
  if (!stopping && !resting) return;
  for (Block &b : held) release(b);
  delete &held;
  w.own = nullptr;
}

// Blocks made by one thread and freed by another.
struct Exchange {
  std::mutex lock;
  Block slot[512];
};
inline Exchange exchange;

inline void step_handover(Worker &w) {
  for (int i = 0; i < 64; i++) {
    Block mine = stopping ? Block{} : allocate(w.random);
    {
      std::lock_guard<std::mutex> hold(exchange.lock);
      std::swap(mine, exchange.slot[w.random.below(512)]);
    }
    count.handed_over.fetch_add(mine.at != nullptr, std::memory_order_relaxed);
    release(mine);
  }
}
inline void empty_exchange() {
  for (Block &b : exchange.slot) release(b);
}

// ---- exceptions and long jumps ----

struct Guard {
  std::string text;
  int *alive;
  Guard(int n, int *counter) : text((size_t)n + 20, 'g'), alive(counter) { ++*alive; }
  ~Guard() { --*alive; }
};
__attribute__((noinline)) inline int throws(int depth, int at, int *alive) {
  Guard guard(depth * 7, alive);
  if (depth == at) throw std::runtime_error("depth " + std::to_string(depth) + guard.text);
  int r = throws(depth + 1, at, alive);
  return r + (int)guard.text.size();
}
inline void step_exceptions(Worker &w) {
  int alive = 0, at = (int)w.random.below(20);
  try {
    try {
      throws(0, at, &alive);
      fail("nothing was thrown");
    } catch (const std::runtime_error &e) {
      if (std::string(e.what()).rfind("depth " + std::to_string(at), 0) != 0) fail("caught another exception: %s", e.what());
      if (alive) fail("%d objects outlived their frames", alive);
      std::string text = e.what();
      throw std::vector<std::string>(5, text);
    }
  } catch (std::vector<std::string> &v) {
    if (v.size() != 5 || v[4].size() != v[0].size()) fail("a second exception came through changed");
  }
  count.thrown.fetch_add(2, std::memory_order_relaxed);
}

struct Escape {
  jmp_buf out;
  Block held[8];
  int used;
};
__attribute__((noinline)) inline int jumps(Escape &e, Random &random, int depth) {
  e.held[e.used++] = allocate(random);
  if (depth == 7) longjmp(e.out, 42);
  return depth > 7 ? 0 : jumps(e, random, depth + 1) + 1;
}
inline void step_jumps(Worker &w) {
  static thread_local Escape e;
  e.used = 0;
  int r = setjmp(e.out);
  if (r == 0) {
    jumps(e, w.random, 0);
    fail("a long jump did not happen");
  }
  if (r != 42 || e.used != 8) fail("a long jump brought %d, %d blocks", r, e.used);
  for (Block &b : e.held) release(b);
  count.jumped.fetch_add(1, std::memory_order_relaxed);
}

// ---- locks held most of the time ----

inline void step_arenas(Worker &w) {
  char *text = nullptr;
  size_t size = 0;
  FILE *out = open_memstream(&text, &size);
  T_CHECK(out && !malloc_info(0, out)); // takes each arena's lock in its turn
  fclose(out);
  T_CHECK(size > 100 && !strncmp(text, "<malloc", 7) && strstr(text, "</malloc>"));
  free(text);
  if (w.random.below(8) == 0) malloc_trim(4096);
  struct mallinfo2 m = mallinfo2();
  T_CHECK(m.arena > 0);
  count.arena_walks.fetch_add(1, std::memory_order_relaxed);
}

inline int look(struct dl_phdr_info *info, size_t, void *seen) {
  *(int *)seen += info->dlpi_phnum;
  double until = b_now_ms() + 0.2; // with the loader's lock held
  while (b_now_ms() < until) {}
  void *p = malloc(100);
  free(p);
  return 0;
}
inline void step_loader(Worker &) {
  int seen = 0;
  dl_iterate_phdr(look, &seen);
  T_CHECK(seen > 4);
  count.loader_walks.fetch_add(1, std::memory_order_relaxed);
}

} // namespace torture
