// A small library that is opened and closed again and again, or late; it allocates in its constructor, its function and its destructor.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef OWN_ALLOCATOR // a whole family, which only this library uses (it is linked with -Bsymbolic)
static char arena[1 << 20] __attribute__((aligned(16)));
static size_t used;
__attribute__((noinline)) void *malloc(size_t n) {
  size_t at = used + 16;
  used = at + ((n + 15) & ~(size_t)15);
  if (used > sizeof arena) return NULL;
  *(size_t *)(arena + at - 16) = n;
  return arena + at;
}
__attribute__((noinline)) void free(void *p) {
  if (p) memset(p, 0x11, 1);
}
__attribute__((noinline)) void *calloc(size_t a, size_t b) {
  void *p = malloc(a * b);
  return p ? memset(p, 0, a * b) : p;
}
__attribute__((noinline)) void *realloc(void *p, size_t n) {
  void *q = malloc(n);
  return p && q ? memcpy(q, p, ((size_t *)p)[-2] < n ? ((size_t *)p)[-2] : n) : q;
}
#endif

#ifdef ROOM // takes more room than the others
char room[1 << 20];
#endif

static char *kept;
__attribute__((constructor)) static void begin(void) {
  kept = malloc(777);
  memset(kept, 0x5a, 777);
}
__attribute__((destructor)) static void end(void) { free(kept); }

// The sum of 1..n, by way of the heap.
uint64_t library_work(uint64_t n) {
  uint64_t *numbers = calloc(n + 1, sizeof *numbers), sum = 0;
  for (uint64_t i = 0; i <= n; i++) numbers[i] = i;
  numbers = realloc(numbers, (n + 100) * sizeof *numbers);
  for (uint64_t i = 0; i <= n; i++) sum += numbers[i];
  free(numbers);
  return kept[776] == 0x5a ? sum : 0;
}

// Blocks of the library itself, whose addresses its caller learns.
void *library_malloc(size_t size) {
  void *block = malloc(size);
  __asm__ volatile("" : "+r"(block)); // a call, not a jump: it is to be on the stack
  return block;
}
void library_free(void *block) { free(block); }
