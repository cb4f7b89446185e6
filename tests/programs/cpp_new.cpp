// Every form of operator new and delete. libstdc++ makes them out of malloc, aligned_alloc and free, and that is what
// the notes say: one block each, however many operators stand between.
#include "oracle.h"
#include <initializer_list>
#include <new>

struct alignas(128) Wide { char bytes[256]; };

static volatile size_t huge = (size_t)1 << 62;

template <class P> static P *made(P *p, enum o_op op, size_t n) __attribute__((always_inline));
template <class P> static inline P *made(P *p, enum o_op op, size_t n) {
  o_note(op, p, n, 0);
  return p;
}
// An object's delete is noted after it, as every free is.
#define GONE(p, expr) do { uintptr_t f_ = (uintptr_t)(p); expr; o_note(O_FREE, f_, 0, 0); } while (0)

static void __attribute__((noinline)) forms(size_t n) {
  auto align = std::align_val_t(64);
  size_t even = (n + 63) / 64 * 64;
  void *a = made(operator new(n), O_MALLOC, n);
  void *b = made(operator new[](n), O_MALLOC, n);
  void *c = made(operator new(n, std::nothrow), O_MALLOC, n);
  void *d = made(operator new[](n, std::nothrow), O_MALLOC, n);
  void *e = made(operator new(even, align), O_ALIGNED_ALLOC, even);
  void *f = made(operator new[](even, align), O_ALIGNED_ALLOC, even);
  void *g = made(operator new(even, align, std::nothrow), O_ALIGNED_ALLOC, even);
  void *h = made(operator new[](even, align, std::nothrow), O_ALIGNED_ALLOC, even);
  GONE(a, operator delete(a));
  GONE(b, operator delete[](b));
  GONE(c, operator delete(c, n)); // sized
  GONE(d, operator delete[](d, n));
  GONE(e, operator delete(e, align));
  GONE(f, operator delete[](f, align));
  GONE(g, operator delete(g, even, align)); // sized and aligned
  GONE(h, operator delete[](h, std::nothrow));
}

int main() {
  for (const char *s : {"_Znwm", "_Znam", "_ZnwmRKSt9nothrow_t", "_ZnamRKSt9nothrow_t", "_ZnwmSt11align_val_t",
                        "_ZnamSt11align_val_t", "_ZnwmSt11align_val_tRKSt9nothrow_t", "_ZnamSt11align_val_tRKSt9nothrow_t",
                        "_ZdlPv", "_ZdaPv"})
    o_through(s);
  o_through("_ZdlPvm"), o_through("_ZdaPvm"), o_through("_ZdlPvSt11align_val_t"), o_through("_ZdaPvSt11align_val_t");
  o_through("_ZdlPvmSt11align_val_t"), o_through("_ZdaPvRKSt9nothrow_t");
  for (size_t n : {size_t(1), size_t(64), size_t(500), size_t(300000)}) forms(n);
  Wide *w = made(new Wide, O_ALIGNED_ALLOC, sizeof(Wide));
  O_CHECK((uintptr_t)w % 128 == 0);
  GONE(w, delete w);
  O_CHECK(operator new(huge, std::nothrow) == nullptr);
  bool thrown = false;
  try {
    O_CHECK(operator new(huge) == nullptr);
  } catch (std::bad_alloc &) {
    thrown = true;
  }
  O_CHECK(thrown);
  volatile char *leak = made(new char[999], O_MALLOC, 999);
  leak[0] = 1;
  return o_end(0);
}
