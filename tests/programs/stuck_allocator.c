// One thread stands still inside the real malloc, another inside the real free, while others allocate, start threads and unload a
// library: a profiler that held a lock while it calls the real allocator would make all of them wait for ever.
// Built twice: with -DALLOCATOR as the library that has the slow malloc and free, and as the program linked with it.
#ifdef ALLOCATOR
#include <stddef.h>
#include <stdatomic.h>
#include <sched.h>

void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void __libc_free(void *);

_Atomic int stuck_inside, stuck_release;
_Atomic(void *) stuck_block;

static void stand_still(void) {
  atomic_fetch_add(&stuck_inside, 1);
  while (!atomic_load(&stuck_release)) sched_yield();
}

void *malloc(size_t n) {
  if (n == 4242) stand_still();
  return __libc_malloc(n);
}
void free(void *p) {
  if (p && p == atomic_load(&stuck_block)) stand_still();
  __libc_free(p);
}
void *calloc(size_t n, size_t m) { return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return __libc_realloc(p, n); }
#else
#include "oracle.h"
#include <stdatomic.h>

extern _Atomic int stuck_inside, stuck_release;
extern _Atomic(void *) stuck_block;

static void *in_malloc(void *arg) {
  o_free(o_malloc(4242));
  return arg;
}
static void *in_free(void *arg) {
  o_free(arg);
  return NULL;
}
static void *busy(void *arg) {
  for (int i = 0; i < 3000; i++) o_free(o_malloc(16 + i % 200));
  return arg;
}

int main(void) {
  alarm(60); // ends the program if everybody waits
  pthread_t thread[2], other[4];
  void *block = o_malloc(77);
  atomic_store(&stuck_block, block);
  O_CHECK(!pthread_create(&thread[0], NULL, in_malloc, NULL));
  O_CHECK(!pthread_create(&thread[1], NULL, in_free, block));
  while (atomic_load(&stuck_inside) < 2) sched_yield();
  for (int i = 0; i < 4; i++) O_CHECK(!pthread_create(&other[i], NULL, busy, NULL));
  busy(NULL);
  for (int i = 0; i < 4; i++) pthread_join(other[i], NULL);
  o_head->fact[0] = (uint64_t)atomic_load(&stuck_inside); // still both in there
  atomic_store(&stuck_release, 1);
  for (int i = 0; i < 2; i++) pthread_join(thread[i], NULL);
  return 0;
}
#endif
