// A program to attach to whose allocator is linked into it under names of its own: jemalloc as tikv-jemallocator builds it, mimalloc, or a
// family that the executable itself exports. Lines on standard input as in attach_target.c: quiet, noted, old, end.
// "beside": as noted, with blocks of libc's own allocator (valloc, which no family here notes) between them.
#define O_CAP (1u << 16)
#define O_NO_HASH
extern char __start_oracle_text[], __stop_oracle_text[];
#define O_OWN_START __start_oracle_text
#define O_OWN_END __stop_oracle_text

#include <stddef.h>
#if defined FAMILY_JEMALLOC
#define FAMILY(name) _rjem_##name
#elif defined FAMILY_MIMALLOC
#define FAMILY(name) mi_##name
#elif defined FAMILY_SNMALLOC
#define FAMILY(name) sn_##name
#else
#define FAMILY(name) name
#endif
extern void *FAMILY(malloc)(size_t), *FAMILY(calloc)(size_t, size_t), *FAMILY(realloc)(void *, size_t);
extern void FAMILY(free)(void *);
#if defined FAMILY_JEMALLOC
extern void *_rjem_mallocx(size_t, int), *_rjem_rallocx(void *, size_t, int);
extern void _rjem_sdallocx(void *, size_t, int), _rjem_dallocx(void *, int);
extern size_t _rjem_xallocx(void *, size_t, size_t, int), _rjem_malloc_usable_size(void *);
extern int _rjem_posix_memalign(void **, size_t, size_t);
#define FAMILY_USABLE _rjem_malloc_usable_size
#elif defined FAMILY_MIMALLOC
extern void *mi_malloc_aligned(size_t, size_t), *mi_zalloc(size_t), *mi_memalign(size_t, size_t);
extern size_t mi_usable_size(void *);
extern int mi_posix_memalign(void **, size_t, size_t);
#define FAMILY_USABLE mi_usable_size
#endif
#if defined FAMILY_SNMALLOC
extern void *sn_rust_alloc(size_t, size_t), *sn_rust_alloc_zeroed(size_t, size_t), *sn_rust_realloc(void *, size_t, size_t, size_t);
extern void sn_rust_dealloc(void *, size_t, size_t);
extern size_t sn_malloc_usable_size(const void *);
#define FAMILY_USABLE sn_malloc_usable_size
#endif
#ifdef FAMILY_USABLE
extern size_t malloc_usable_size(void *);
static int of_libc;
static size_t usable_size(void *p) { return of_libc ? malloc_usable_size(p) : FAMILY_USABLE(p); }
#define O_USABLE usable_size
#endif
#include "oracle.h"

#define OWN __attribute__((section("oracle_text"), noinline))
#define SLOTS 300
static void *old[64];
static uint64_t phases;

OWN static void *family_malloc(size_t n) {
  void *p = FAMILY(malloc)(n);
  o_note(O_MALLOC, p, n, NULL);
  return p;
}
OWN static void *family_calloc(size_t a, size_t b) {
  void *p = FAMILY(calloc)(a, b);
  o_note(O_CALLOC, p, a * b, NULL);
  return p;
}
OWN static void *family_realloc(void *q, size_t n) {
  uintptr_t before = (uintptr_t)q;
  void *p = FAMILY(realloc)(q, n);
  o_note(O_REALLOC, p, n, before);
  return p;
}
OWN static void *family_posix_memalign(size_t align, size_t n) {
  void *p = NULL;
#if defined FAMILY_SNMALLOC
  p = sn_rust_alloc(align, n);
  o_note(O_ALIGNED_ALLOC, p, n, NULL);
  return p;
#elif defined FAMILY_JEMALLOC
  O_CHECK(!_rjem_posix_memalign(&p, align, n));
#elif defined FAMILY_MIMALLOC
  O_CHECK(!mi_posix_memalign(&p, align, n));
#else
  O_CHECK(!posix_memalign(&p, align, n));
#endif
  o_note(O_POSIX_MEMALIGN, p, n, NULL);
  return p;
}
// The size before flags or alignment.
OWN static void *family_sized(size_t n) {
#if defined FAMILY_JEMALLOC
  void *p = _rjem_mallocx(n, 0);
  o_note(O_MALLOCX, p, n, NULL);
#elif defined FAMILY_MIMALLOC
  void *p = mi_malloc_aligned(n, 64);
  o_note(O_ALIGNED_ALLOC, p, n, NULL);
#else
  void *p = FAMILY(malloc)(n);
  o_note(O_MALLOC, p, n, NULL);
#endif
  return p;
}
OWN static void *family_resized(void *q, size_t n) {
#if defined FAMILY_JEMALLOC
  uintptr_t before = (uintptr_t)q;
  void *p = _rjem_rallocx(q, n, 0);
  o_note(O_RALLOCX, p, n, before);
  return p;
#else
  return family_realloc(q, n);
#endif
}
OWN static void family_free(void *p, int i) {
  uintptr_t gone = (uintptr_t)p;
  if (!p) return;
#if defined FAMILY_JEMALLOC
  if (i % 3 == 1) _rjem_sdallocx(p, _rjem_malloc_usable_size(p), 0);
  else if (i % 3 == 2) _rjem_dallocx(p, 0);
  else FAMILY(free)(p);
#else
  (void)i;
  FAMILY(free)(p);
#endif
  o_note(O_FREE, gone, 0, NULL);
}

OWN static void noted(void) {
  void *kept[SLOTS] = {0};
  unsigned state = 12345;
  for (int i = 0; i < 2000; i++) {
    state = state * 1103515245u + 12345u;
    size_t n = 1 + (state >> 8) % 3000;
    void **at = &kept[(state >> 20) % SLOTS];
    if (*at && i % 4 == 0) *at = family_realloc(*at, n);
    else if (*at && i % 4 == 1) *at = family_resized(*at, n);
    else if (*at) family_free(*at, i), *at = NULL;
    else if (i % 5 == 0) *at = family_calloc(n / 8 + 1, 8);
    else if (i % 5 == 1) *at = family_posix_memalign(64, n);
    else if (i % 5 == 2) *at = family_sized(n);
    else *at = family_malloc(n);
  }
  for (int i = 0; i < SLOTS; i++) family_free(kept[i], i);
#if defined FAMILY_SNMALLOC
  for (size_t n = 1; n < 300; n++) {
    void *p = n % 2 ? sn_rust_alloc(32, n) : sn_rust_alloc_zeroed(32, n);
    o_note(n % 2 ? O_ALIGNED_ALLOC : O_CALLOC, p, n, NULL);
    uintptr_t before = (uintptr_t)p;
    p = sn_rust_realloc(p, 32, n, 3 * n);
    o_note(O_REALLOC, p, 3 * n, before);
    before = (uintptr_t)p;
    sn_rust_dealloc(p, 32, 3 * n);
    o_note(O_FREE, before, 0, NULL);
  }
#endif
}

#ifdef FAMILY_USABLE
// Blocks of both allocators live at once, and are released in turns.
OWN static void beside(void) {
  void *libcs[SLOTS] = {0}, *kept[SLOTS] = {0};
  for (int i = 0; i < 2000; i++) {
    int at = i * 7 % SLOTS;
    of_libc = 1;
    if (libcs[at]) o_free(libcs[at]), libcs[at] = NULL;
    else libcs[at] = o_valloc(100 + (size_t)i);
    of_libc = 0;
    if (kept[at]) family_free(kept[at], i), kept[at] = NULL;
    else kept[at] = i % 2 ? family_malloc(10 + (size_t)i) : family_calloc(1 + (size_t)i, 8);
  }
  for (int i = 0; i < SLOTS; i++) {
    o_free(libcs[i]);
    family_free(kept[i], i);
  }
}
#endif

static void quiet(void) {
  for (size_t i = 1; i < 5000; i++) {
    void *p = FAMILY(malloc)(i);
    O_CHECK(p);
    FAMILY(free)(p);
  }
}

static int next_line(char *line, size_t room) {
  size_t n = 0;
  while (n + 1 < room) {
    ssize_t r = read(0, line + n, 1);
    O_CHECK(r >= 0);
    if (r == 0) return 0;
    if (line[n] == '\n') break;
    n++;
  }
  line[n] = 0;
  return 1;
}

int attach_family_main(void) {
  char line[64], answer[128];
  for (int i = 0; i < 64; i++) old[i] = FAMILY(malloc)(50 + (size_t)i);
  O_CHECK(write(1, "ready\n", 6) == 6);
  while (next_line(line, sizeof line)) {
    uint64_t first = o_head->used_recs;
    if (!strcmp(line, "quiet")) quiet();
    else if (!strcmp(line, "noted")) noted();
#ifdef FAMILY_USABLE
    else if (!strcmp(line, "beside")) beside();
#endif
    else if (!strcmp(line, "old")) for (int i = 0; i < 64; i++) family_free(old[i], i), old[i] = NULL;
    else if (!strcmp(line, "end")) return o_end(0);
    else return 2;
    if (o_head->used_recs != first) {
      O_CHECK(phases < 17);
      o_fact(2 + 2 * (int)phases, first);
      o_fact(3 + 2 * (int)phases, o_head->used_recs);
      o_fact(0, ++phases);
    }
    int n = snprintf(answer, sizeof answer, "done %s\n", line);
    O_CHECK(write(1, answer, (size_t)n) == n);
  }
  return 3;
}

#ifdef FAMILY_EXPORTED
// An allocator of the executable's own, exported: a bump allocator with size classes, thread-safe by one lock.
static char arena[64 << 20] __attribute__((aligned(4096)));
static size_t bump;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
struct head { size_t room, start; };
static struct head *freed[40];
static int class_of(size_t n) { return 64 - __builtin_clzll((n < 32 ? 32 : n) - 1); }
#define HEAD(p) ((struct head *)(p)-1)
#define ENTRY __attribute__((noinline, noclone))
ENTRY static void *take(size_t align, size_t n) {
  int c = class_of(n);
  pthread_mutex_lock(&lock);
  struct head *h = align <= 16 ? freed[c] : NULL;
  if (h) {
    freed[c] = *(struct head **)(h + 1);
  } else {
    size_t at = (bump + sizeof *h + align - 1) & ~(align - 1);
    if (at + ((size_t)1 << c) > sizeof arena) {
      pthread_mutex_unlock(&lock);
      errno = ENOMEM;
      return NULL;
    }
    h = HEAD(arena + at);
    h->room = (size_t)1 << c;
    bump = at + h->room;
  }
  pthread_mutex_unlock(&lock);
  return h + 1;
}
ENTRY static void give_back(void *p) {
  if (!p) return;
  int c = class_of(HEAD(p)->room);
  pthread_mutex_lock(&lock);
  *(struct head **)p = freed[c];
  freed[c] = HEAD(p);
  pthread_mutex_unlock(&lock);
}
ENTRY void *malloc(size_t n) { return take(16, n); }
ENTRY void free(void *p) { give_back(p); }
ENTRY void *calloc(size_t a, size_t b) {
  void *p = take(16, a * b);
  return p ? memset(p, 0, a * b) : p;
}
ENTRY size_t malloc_usable_size(void *p) { return p ? HEAD(p)->room : 0; }
ENTRY void *realloc(void *p, size_t n) {
  if (p && HEAD(p)->room >= n) return p;
  void *q = take(16, n);
  if (p && q) memcpy(q, p, HEAD(p)->room), give_back(p);
  return q;
}
ENTRY void *memalign(size_t align, size_t n) { return take(align, n); }
ENTRY void *aligned_alloc(size_t align, size_t n) { return take(align, n); }
ENTRY int posix_memalign(void **out, size_t align, size_t n) { return (*out = take(align, n)) ? 0 : ENOMEM; }
#endif
#if !defined FAMILY_JEMALLOC && !defined FAMILY_MIMALLOC && !defined FAMILY_SNMALLOC
int main(void) { return attach_family_main(); }
#endif
