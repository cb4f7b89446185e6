// A seeded random walk through functions of all kinds of frames, from fiber to fiber, left by longjmp, and gone on with in a signal's
// handler, maybe on a stack of its own. Each block's call path is written down, as the functions themselves keep it.
// wanderings SEED BLOCKS FILE [alternate]
// The file: for each block the number of functions, and of each, leaf last, where it begins; eight bytes each.
#define _GNU_SOURCE
#include <alloca.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>

enum { DEEPEST = 400, FIBERS = 6, FUNCTIONS = 48, BAG = 64 };
typedef uint64_t function(uint64_t x, int left);
extern function *const functions[FUNCTIONS];

struct fiber {
  uint64_t path[DEEPEST];
  int depth;
  jmp_buf places[DEEPEST];
  int depths[DEEPEST];
  int known;
  ucontext_t context;
  int is_alive;
};
static struct fiber fibers[FIBERS], *fiber = fibers;
static uint32_t seed;
static uint64_t left_to_do;
static int in_handler;
static FILE *out;
static void *bag[BAG];
static unsigned bags;

static uint32_t rnd(uint32_t n) {
  seed = seed * 1664525u + 1013904223u;
  return (seed >> 8) % n;
}

#define OPAQUE __attribute__((noipa))
OPAQUE static void use(void *p) { __asm__ volatile("" : : "r"(p) : "memory"); }

OPAQUE static void note(void) {
  uint64_t depth = (uint64_t)fiber->depth;
  if (left_to_do) left_to_do--;
  fwrite(&depth, 8, 1, out);
  fwrite(fiber->path, 8, depth, out);
}

OPAQUE static void swap(void) {
  struct fiber *before = fiber, *next = &fibers[rnd(FIBERS)];
  if (next == before || !next->is_alive) return;
  fiber = next;
  swapcontext(&before->context, &next->context);
}

static uint64_t call(uint64_t x, int left) { return functions[rnd(FUNCTIONS)](x, left); }

// What each function does in its own frame: allocates, goes deeper, jumps back, lets another fiber or a handler on.
#define WANDER(s, left)                                                                                  \
  for (volatile uint32_t turns = 1 + rnd(4); turns && left_to_do; turns--) {                              \
    if (!in_handler && !rnd(60)) swap();                                                                 \
    if (!in_handler && !rnd(50)) raise(SIGUSR1);                                                         \
    uint32_t what = rnd(100);                                                                            \
    if (what < 45 || fiber->depth > DEEPEST - 20 || left <= 0) {                                         \
      note();                                                                                            \
      void *p = malloc(16 + rnd(200));                                                                   \
      use(p);                                                                                            \
      free(bag[bags % BAG]);                                                                             \
      bag[bags++ % BAG] = p;                                                                             \
      s += (uintptr_t)p;                                                                                 \
    } else if (what < 48 && !in_handler && fiber->known < DEEPEST - 2) {                                 \
      int at = fiber->known;                                                                             \
      fiber->depths[at] = fiber->depth;                                                                  \
      if (!setjmp(fiber->places[at])) {                                                                  \
        fiber->known++;                                                                                  \
        s += call(s, left - 1);                                                                          \
        fiber->known--;                                                                                  \
      }                                                                                                  \
    } else if (what < 49 && !in_handler && fiber->known > 0 && !rnd(4)) {                                \
      int to = (int)rnd((uint32_t)fiber->known);                                                         \
      fiber->depth = fiber->depths[to];                                                                  \
      fiber->known = to;                                                                                 \
      longjmp(fiber->places[to], 1);                                                                     \
    } else {                                                                                             \
      s += call(s, left - 1 - (rnd(8) ? (int)rnd(3) : 0));                                               \
    }                                                                                                    \
  }

#define FUNCTION(name, attributes, locals, last)             \
  OPAQUE attributes static uint64_t name(uint64_t x, int left) { \
    fiber->path[fiber->depth++] = (uint64_t)&name;           \
    volatile uint64_t s = x;                                 \
    locals;                                                  \
    WANDER(s, left)                                          \
    last;                                                    \
    fiber->depth--;                                          \
    use((void *)&s);                                         \
    return s;                                                \
  }
#define SIX(n)                                                                                                          \
  FUNCTION(plain##n, , , )                                                                                              \
  FUNCTION(sized##n, , char *room = alloca(16 + (size_t)(x % (100 * n + 50))); use(room), )                             \
  FUNCTION(large##n, , char room[300 * n + 40]; use(room), )                                                            \
  FUNCTION(framed##n, __attribute__((optimize("no-omit-frame-pointer"))), , )                                           \
  FUNCTION(keeps##n, , uint64_t a = x * 3; uint64_t b = x ^ 7; uint64_t c = x - 5; use(&a), s += a + b + c)             \
  FUNCTION(aligned##n, , _Alignas(64) char room[64]; use(room), )
SIX(1) SIX(2) SIX(3) SIX(4) SIX(5) SIX(6) SIX(7) SIX(8)
#define NAMES(n) plain##n, sized##n, large##n, framed##n, keeps##n, aligned##n
function *const functions[FUNCTIONS] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4), NAMES(5), NAMES(6), NAMES(7), NAMES(8)};

static void wander(void) {
  fiber->depth = fiber->known = 0;
  call(1, 12 + (int)rnd(60));
}

static void handler(int number) {
  int depth = fiber->depth;
  in_handler = 1;
  call((uint64_t)number, (int)rnd(6));
  in_handler = 0;
  fiber->depth = depth;
}

static void in_a_fiber(void) {
  while (left_to_do) wander();
  fiber->is_alive = 0;
  struct fiber *before = fiber;
  fiber = fibers;
  swapcontext(&before->context, &fibers[0].context);
}

int main(int argc, char **argv) {
  static char alternate[1 << 17], buffer[1 << 20];
  if (argc < 4 || !(out = fopen(argv[3], "wb"))) return 90;
  setvbuf(out, buffer, _IOFBF, sizeof buffer);
  seed = (uint32_t)atoi(argv[1]);
  left_to_do = strtoull(argv[2], NULL, 10);
  stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
  struct sigaction action = {.sa_handler = handler, .sa_flags = argc > 4 ? SA_ONSTACK : 0};
  if (sigaltstack(&stack, NULL) || sigaction(SIGUSR1, &action, NULL)) return 91;
  for (int i = 0; i < FIBERS; i++) {
    fibers[i].is_alive = 1;
    if (i == 0) continue;
    if (getcontext(&fibers[i].context)) return 92;
    fibers[i].context.uc_stack.ss_sp = malloc(1 << 20);
    fibers[i].context.uc_stack.ss_size = 1 << 20;
    makecontext(&fibers[i].context, in_a_fiber, 0);
  }
  while (left_to_do) wander();
  return fclose(out) != 0;
}
