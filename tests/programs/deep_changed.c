// Recursion about as deep as, and deeper than, the longest stack that is recorded, while frames near the root change from one to
// the next: what is remembered of the outer frames has to be put right although the inner ones alone would fill the limit.
#define O_DEPTH 22000
#define O_WORDS (1u << 21)
#include "oracle.h"

static int target;
static size_t size = 1000;

static void __attribute__((noinline)) rec(int n) {
  if (n < target) rec(n + 1);
  else {
    void *p = o_malloc(size++);
    o_free(p);
  }
  __asm__ volatile("");
}

// Two of each: same shape, other return address.
static void __attribute__((noinline)) inner_1(void) { rec(0); __asm__ volatile("nop"); }
static void __attribute__((noinline)) inner_2(void) { rec(0); __asm__ volatile("nop;nop"); }
static void (*volatile inner)(void);
static void __attribute__((noinline)) middle_3(void) { inner(); __asm__ volatile(""); }
static void __attribute__((noinline)) middle_2(void) { middle_3(); __asm__ volatile(""); }
static void __attribute__((noinline)) middle_1(void) { middle_2(); __asm__ volatile(""); }
static void __attribute__((noinline)) outer_1(void) { middle_1(); __asm__ volatile("nop"); }
static void __attribute__((noinline)) outer_2(void) { middle_1(); __asm__ volatile("nop;nop"); }
static void (*volatile outer)(void);

int main(void) {
  static const int depths[] = {16000, 16500, 16000, 20000, 16300, 16420, 16350, 16500, 100, 16500, 20000, 16000};
  int n = sizeof depths / sizeof *depths;
  for (int i = 0; i < 2 * n; i++) {
    target = depths[i % n];
    inner = i & 1 ? inner_2 : inner_1;
    outer = i & 2 ? outer_2 : outer_1;
    outer();
    __asm__ volatile("");
  }
  o_fact(0, (uint64_t)n * 2);
  return o_end(0);
}
