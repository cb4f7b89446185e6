// 20,000 C++ exceptions thrown through allocating frames of changing depth; each catch allocates at once on a stack
// whose popped part still holds the old frames. Destructors free on the way.
#define O_CAP (1u << 18)
#include "oracle.h"
#include <stdexcept>

struct Held {
  void *p;
  explicit Held(size_t n) : p(o_malloc(n)) {}
  ~Held() { o_free(p); }
};

static int __attribute__((noinline)) descend(int depth, int bottom) {
  Held held(16 + (size_t)depth * 8);
  if (depth == bottom) throw bottom;
  volatile int below = descend(depth + 1, bottom);
  return below + 1;
}

static int __attribute__((noinline)) rethrower(int bottom) {
  try {
    return descend(0, bottom);
  } catch (...) {
    Held inside(33);
    throw;
  }
}

int main() {
  uint64_t caught = 0;
  for (int i = 0; i < 20000; i++) {
    try {
      if (i % 3) descend(0, i % 4);
      else rethrower(i % 5);
    } catch (int) {
      void *p = o_malloc(40);
      o_free(p);
      caught++;
    }
  }
  O_CHECK(caught == 20000);
  o_fact(0, caught);
  return o_end(0);
}
