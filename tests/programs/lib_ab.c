// Compiled twice, with LIB=a and LIB=b: two libraries of one size, whose functions have different names at the same
// offsets. Whichever is loaded where the other was must get the blame for its own leaks.
#include <stdlib.h>
#define NAME2(lib, what) lib##_##what
#define NAME(lib, what) NAME2(lib, what)

__attribute__((noinline)) void *NAME(LIB, inner)(size_t n) {
  void *p = malloc(n);
  __asm__ volatile("" : : "r"(p) : "memory");
  return p;
}
__attribute__((noinline)) void *NAME(LIB, outer)(size_t n) {
  void *p = NAME(LIB, inner)(n);
  __asm__ volatile("" : : "r"(p) : "memory");
  return p;
}
