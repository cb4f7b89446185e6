// 100,000 allocations at depth 30, from one call site ("same"), three alternating leaf frames ("leaves"), with one frame
// near the root alternating ("root"), or with the path popped and pushed anew each time ("pushed"): each names the work a
// verified shadow stack may do per allocation.
#define O_NO_STACKS
#include "oracle.h"

#define TIMES 100000
static int mode;

static void __attribute__((noinline)) pair(void) { void *p = malloc(40); __asm__ volatile("" : : "r"(p) : "memory"); free(p); }
static void __attribute__((noinline)) leaf_a(void) { pair(); __asm__ volatile(""); }
static void __attribute__((noinline)) leaf_b(void) { pair(); __asm__ volatile("nop"); }
static void __attribute__((noinline)) leaf_c(void) { pair(); __asm__ volatile("nop; nop"); }

static void __attribute__((noinline)) down(int depth, int times) {
  if (depth) { down(depth - 1, times); __asm__ volatile(""); return; }
  for (int i = 0; i < times; i++) {
    if (mode == 0) pair();
    else switch (i % 3) { case 0: leaf_a(); break; case 1: leaf_b(); break; default: leaf_c(); }
  }
}

static void __attribute__((noinline)) root_a(int d) { down(d, 1); __asm__ volatile(""); }
static void __attribute__((noinline)) root_b(int d) { down(d, 1); __asm__ volatile("nop"); }

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "same";
  int depth = 28; // with main, pair or a leaf: 30 frames of the program
  mode = !strcmp(what, "leaves");
  if (!strcmp(what, "root")) for (int i = 0; i < TIMES; i++) i % 2 ? root_a(depth) : root_b(depth);
  else if (!strcmp(what, "pushed")) for (int i = 0; i < TIMES; i++) down(depth, 1);
  else down(depth, TIMES);
  return o_end(0);
}
