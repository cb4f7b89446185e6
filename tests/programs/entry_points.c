// Every C entry point of the allocator, with the edge cases where profilers lie: NULL, zero, overflow, failure.
// errno must be what the real allocator leaves: set on failure, untouched on success.
#include "oracle.h"

#define PTRS 64
static void *kept[PTRS];
static int kept_count;
static volatile size_t huge = (size_t)1 << 62;
static volatile size_t half = (size_t)1 << 33;

static void keep(void *p) { kept[kept_count++] = p; }

// `calm` runs an expression that must succeed and leave errno alone, `fails` one that must fail with this errno.
#define calm(expr) __extension__({ errno = 77; __auto_type r_ = (expr); O_CHECK(r_ && errno == 77); r_; })
#define fails(expr, code) __extension__({ errno = 77; O_CHECK(!(expr)); O_CHECK(errno == (code)); })

static void succeed(size_t n) {
  void *p = NULL;
  keep(calm(o_malloc(n)));
  keep(calm(o_calloc(3, n)));
  keep(calm(o_realloc(NULL, n)));
  keep(calm(o_reallocarray(NULL, 5, n)));
  errno = 77;
  O_CHECK(o_posix_memalign(&p, 256, n) == 0 && errno == 77 && (uintptr_t)p % 256 == 0);
  keep(p);
  keep(calm(o_memalign(512, n)));
  keep(calm(o_aligned_alloc(64, n)));
  keep(calm(o_valloc(n)));
  keep(calm(o_pvalloc(n)));
}

static void fill(void) {
  for (int i = 0; i < kept_count; i++) memset(kept[i], 0xa5, malloc_usable_size(kept[i]));
}

static void release(void) {
  while (kept_count) {
    errno = 77;
    o_free(kept[--kept_count]);
    O_CHECK(errno == 77);
  }
}

static void zero_and_null(void) {
  errno = 77;
  o_free(NULL);
  O_CHECK(errno == 77);
  keep(calm(o_malloc(0)));
  keep(calm(o_calloc(0, 8)));
  keep(calm(o_calloc(8, 0)));
  keep(calm(o_realloc(NULL, 0)));
  keep(calm(o_memalign(64, 0)));
  void *p = calm(o_malloc(100));
  errno = 77;
  O_CHECK(o_realloc(p, 0) == NULL); // glibc: this frees
  p = calm(o_malloc(100));
  O_CHECK(o_reallocarray(p, 4, 0) == NULL);
  release();
}

static void failing(void) {
  void *p = NULL, *q = calm(o_malloc(4000));
  memset(q, 0x5a, 4000);
  fails(o_malloc(huge), ENOMEM);
  fails(o_calloc(huge, 8), ENOMEM);
  fails(o_calloc(half, half), ENOMEM);
  fails(o_realloc(q, huge), ENOMEM);
  fails(o_reallocarray(q, half, half), ENOMEM);
  fails(o_reallocarray(NULL, half, half), ENOMEM);
  fails(o_memalign(4096, huge), ENOMEM);
  fails(o_aligned_alloc(4096, huge), ENOMEM);
  fails(o_valloc(huge), ENOMEM);
  fails(o_pvalloc((size_t)-1), ENOMEM);
  O_CHECK(o_posix_memalign(&p, 24, 100) == EINVAL && p == NULL);
  O_CHECK(o_posix_memalign(&p, 64, huge) == ENOMEM && p == NULL);
  for (int i = 0; i < 4000; i++) O_CHECK(((unsigned char *)q)[i] == 0x5a); // the block of a failed realloc lives on
  o_free(q);
}

// realloc in place, moving, across the mmap threshold and back.
static void moving(void) {
  char *p = o_malloc(24), *wall;
  p[0] = 42;
  for (size_t n = 48; n < 4u << 20; n *= 2) {
    wall = o_malloc(16); // stands behind p, so that it has to move
    p = calm(o_realloc(p, n));
    O_CHECK(p[0] == 42);
    o_free(wall);
  }
  p = calm(o_reallocarray(p, 1000, 1000));
  p = calm(o_realloc(p, 10));
  p = calm(o_realloc(p, 10));
  O_CHECK(p[0] == 42);
  o_free(p);
}

int main(void) {
  size_t sizes[] = {1, 24, 25, 1000, 5000, 200000, 3u << 20};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    succeed(sizes[i]);
    fill();
    if (i % 2) release();
    else if (kept_count > PTRS - 10) release();
  }
  release();
  zero_and_null();
  failing();
  moving();
  keep(calm(o_malloc(12345))); // live at the end
  keep(calm(o_memalign(128, 777)));
  return o_end(7);
}
