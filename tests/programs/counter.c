// An LD_PRELOAD library that does nothing but count: calls and bytes of every entry point that succeeded, written at exit
// to the file named by COUNTER_FILE. It shares no idea with hound beyond interposition, so equal totals mean something.
#define _GNU_SOURCE 1
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void *__libc_valloc(size_t), *__libc_pvalloc(size_t);
extern void __libc_free(void *);

static uint64_t allocations, allocated_bytes, frees;
static pid_t owner;
#define ADD(var, n) __atomic_fetch_add(&(var), (n), __ATOMIC_RELAXED)

static void *made(void *p, size_t n) {
  if (p) ADD(allocations, 1), ADD(allocated_bytes, n);
  return p;
}

void *malloc(size_t n) { return made(__libc_malloc(n), n); }
void *calloc(size_t a, size_t b) { return made(__libc_calloc(a, b), a * b); }
void *memalign(size_t a, size_t n) { return made(__libc_memalign(a, n), n); }
void *aligned_alloc(size_t a, size_t n) { return made(__libc_memalign(a, n), n); }
void *valloc(size_t n) { return made(__libc_valloc(n), n); }
void *pvalloc(size_t n) { return made(__libc_pvalloc(n), n); }
int posix_memalign(void **out, size_t a, size_t n) {
  if (a < sizeof(void *) || a & (a - 1)) return EINVAL;
  int saved = errno;
  void *p = made(__libc_memalign(a, n), n);
  errno = saved;
  if (!p) return ENOMEM;
  *out = p;
  return 0;
}
void *realloc(void *old, size_t n) {
  void *p = __libc_realloc(old, n);
  if (old && (p || n == 0)) ADD(frees, 1);
  return made(p, n);
}
void *reallocarray(void *old, size_t a, size_t b) {
  size_t n;
  if (__builtin_mul_overflow(a, b, &n)) { errno = ENOMEM; return NULL; }
  return realloc(old, n);
}
void free(void *p) {
  if (p) ADD(frees, 1);
  __libc_free(p);
}

static char path[4096]; // taken at the start: the program may change its environment
__attribute__((constructor)) static void begin(void) {
  owner = getpid();
  const char *p = getenv("COUNTER_FILE");
  if (p) strncpy(path, p, sizeof path - 1);
  // Programs copy their environment to the heap: they must see the one that they see under hound.
  unsetenv("COUNTER_FILE");
  unsetenv("LD_PRELOAD");
}
__attribute__((destructor)) static void finish(void) {
  if (getpid() != owner || !*path) return;
  char line[256];
  int n = snprintf(line, sizeof line, "{\"allocations\":%lu,\"allocated_bytes\":%lu,\"frees\":%lu}\n", allocations, allocated_bytes, frees);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd >= 0) { if (write(fd, line, (size_t)n) < n) _exit(97); close(fd); }
}
