// Recursion 10,000 frames deep with allocations on the way down, at the bottom and on the way up.
#define O_DEPTH 12000
#define O_WORDS (1u << 23)
#include "oracle.h"

static uint64_t reached;

static int __attribute__((noinline)) down(int left, void *from_above) {
  volatile char pad[16] = {0};
  void *p = NULL;
  if (left % 50 == 0) p = o_malloc(32 + (size_t)left % 100);
  int n = 0;
  if (left) n = down(left - 1, p ? p : from_above) + pad[left % 16];
  else {
    for (int i = 0; i < 100; i++) {
      void *q = o_malloc(500);
      o_free(q);
    }
    reached = (uint64_t)left + 1;
  }
  o_free(p);
  return n + 1;
}

int main(void) {
  O_CHECK(down(10000, NULL) == 10001);
  O_CHECK(reached == 1);
  o_fact(0, 10000);
  return o_end(0);
}
