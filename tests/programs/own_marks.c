// Blocks of an allocator that is not the libc's, in a process that uses the libc's as well: `own_marks`, until a line comes on its standard
// input. Its functions have jemalloc's names under a prefix. Its blocks lie side by side, are never released, and are full of what glibc's
// marks would say of blocks of another size.
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { BLOCK = 64, ROOM = 256 << 20, AT_ONCE = 50 };
static uint64_t *next, *end;

__attribute__((noinline)) void *own_malloc(size_t size) {
  if (size > BLOCK || next == end) return NULL;
  uint64_t *block = next;
  next += BLOCK / 8;
  for (int i = 0; i < BLOCK / 8; i++) block[i] = 0x1001;
  return block;
}
__attribute__((noinline)) void own_free(void *block) { __asm__ volatile("" ::"r"(block)); }
__attribute__((noinline)) void *own_mallocx(size_t size, int flags) { return flags ? NULL : own_malloc(size); }
__attribute__((noinline)) void *own_calloc(size_t count, size_t size) { return own_malloc(count * size); }
__attribute__((noinline)) void *own_realloc(void *block, size_t size) { return size <= BLOCK && block ? block : own_malloc(size); }
__attribute__((noinline)) void *own_rallocx(void *block, size_t size, int flags) { return flags ? NULL : own_realloc(block, size); }
__attribute__((noinline)) void own_dallocx(void *block, int flags) {
  if (!flags) own_free(block);
}
__attribute__((noinline)) void own_sdallocx(void *block, size_t size, int flags) {
  if (size) own_dallocx(block, flags);
}
int own_mallctl(const char *name, void *old, size_t *old_size, void *new, size_t size) {
  (void)name, (void)old, (void)old_size, (void)new, (void)size;
  return 2;
}

int main(void) {
  next = mmap(NULL, ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (next == MAP_FAILED) return 1;
  end = next + ROOM / 8;
  void *kept[64];
  for (int i = 0; i < 64; i++) kept[i] = malloc(100 + i);
  for (int i = 0; i < 64; i += 2) free(kept[i]);
  puts("ready");
  fflush(stdout);
  struct pollfd in = {0, POLLIN, 0};
  while (poll(&in, 1, 1) == 0) {
    for (int i = 0; i < AT_ONCE; i++) own_malloc(BLOCK);
    free(malloc(200));
  }
  return 0;
}
