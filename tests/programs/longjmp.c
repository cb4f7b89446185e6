// 20,000 longjmps out of allocating frames of changing depth, with an allocation right after each landing.
#define O_CAP (1u << 18)
#include "oracle.h"
#include <setjmp.h>

static jmp_buf home;

static int __attribute__((noinline)) descend(int depth, int bottom) {
  volatile char pad[64];
  pad[depth % 64] = (char)depth;
  void *p = o_malloc(16 + (size_t)depth);
  o_free(p);
  if (depth >= bottom) longjmp(home, 1);
  return descend(depth + 1, bottom) + pad[depth % 64];
}

int main(void) {
  static volatile int i, landed;
  for (i = 0; i < 20000; i++) {
    if (setjmp(home) == 0) descend(0, i % 7);
    landed++;
    void *p = o_malloc(100);
    o_free(p);
  }
  O_CHECK(landed == 20000);
  o_fact(0, (uint64_t)landed);
  return o_end(0);
}
