// A library whose table of unwind rules the program damages before it calls in: see damaged.c.
#include <stdlib.h>
typedef void *(*maker)(size_t);
#define LINK(n, m) __attribute__((noinline)) void *link_##n(maker f, size_t s) { char room[n * 16]; __asm__ volatile("" : : "r"(room) : "memory"); void *p = link_##m(f, s); __asm__ volatile("" : "+r"(p) : : "memory"); return p; }
__attribute__((noinline)) void *damaged_call(maker f, size_t s) {
  void *p = f(s);
  __asm__ volatile("" : "+r"(p) : : "memory");
  return p;
}
__attribute__((noinline)) void *link_0(maker f, size_t s) {
  void *p = damaged_call(f, s);
  __asm__ volatile("" : "+r"(p) : : "memory");
  return p;
}
LINK(1, 0) LINK(2, 1) LINK(3, 2) LINK(4, 3) LINK(5, 4) LINK(6, 5) LINK(7, 6) LINK(8, 7) LINK(9, 8)
void *damaged_entry(maker f, size_t s, int depth) {
  switch (depth % 10) {
  case 0: return link_0(f, s);
  case 1: return link_1(f, s);
  case 2: return link_2(f, s);
  case 3: return link_3(f, s);
  case 4: return link_4(f, s);
  case 5: return link_5(f, s);
  case 6: return link_6(f, s);
  case 7: return link_7(f, s);
  case 8: return link_8(f, s);
  }
  return link_9(f, s);
}
