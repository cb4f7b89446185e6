// Work at depth 30: pairs of malloc and free from one call site ("same"), from three alternating leaf frames ("leaves"), with one frame near the
// root alternating ("root"), or with the path popped and pushed anew each time ("pushed").
#ifndef BEFORE_EACH
#define BEFORE_EACH()
#endif

static int alternates;

static void __attribute__((noinline)) pair(void) { void *p = malloc(40); __asm__ volatile("" : : "r"(p) : "memory"); free(p); }
static void __attribute__((noinline)) leaf_a(void) { pair(); __asm__ volatile(""); }
static void __attribute__((noinline)) leaf_b(void) { pair(); __asm__ volatile("nop"); }
static void __attribute__((noinline)) leaf_c(void) { pair(); __asm__ volatile("nop; nop"); }

static void __attribute__((noinline)) down(int depth, int times) {
  if (depth) { down(depth - 1, times); __asm__ volatile(""); return; }
  for (int i = 0; i < times; i++) {
    BEFORE_EACH();
    if (!alternates) pair();
    else switch (i % 3) { case 0: leaf_a(); break; case 1: leaf_b(); break; default: leaf_c(); }
  }
}

static void __attribute__((noinline)) root_a(int d) { down(d, 1); __asm__ volatile(""); }
static void __attribute__((noinline)) root_b(int d) { down(d, 1); __asm__ volatile("nop"); }

static inline __attribute__((always_inline)) void paths(const char *what, int times) {
  int depth = 28; // with main, pair or a leaf: 30 frames of the program
  alternates = !strcmp(what, "leaves");
  if (!strcmp(what, "root")) for (int i = 0; i < times; i++) i % 2 ? root_a(depth) : root_b(depth);
  else if (!strcmp(what, "pushed")) for (int i = 0; i < times; i++) down(depth, 1);
  else down(depth, times);
}
