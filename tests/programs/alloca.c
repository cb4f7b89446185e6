// The frame's size changes between two allocations made by the same function at the same depth.
#include "oracle.h"
#include <alloca.h>

static void __attribute__((noinline)) leaf(size_t n) { void *p = o_malloc(n); o_free(p); }

static void __attribute__((noinline)) growing(void) {
  for (int i = 1; i < 200; i++) {
    volatile char *p = alloca((size_t)i % 7 * 16 + 16);
    p[0] = (char)i;
    leaf((size_t)i);
    void *own = o_malloc(10);
    o_free(own);
  }
}

static void __attribute__((noinline)) vla(size_t n) {
  volatile char v[n];
  v[n - 1] = 1;
  leaf(n);
  { volatile char w[n * 2]; w[0] = v[n - 1]; leaf(n * 2); w[1] = w[0]; }
  leaf(n);
}

int main(void) {
  for (int round = 0; round < 5; round++) growing();
  for (size_t n = 1; n < 300; n++) vla(n);
  return o_end(0);
}
