// A hundred thousand threads, forty at a time. Each allocates two blocks, mostly releases one of them, and hands the other one over to a thread that
// comes later, which releases it. The kernel gives thread ids out anew long before the last: pid_max is 32,768 on many machines.
#define O_CAP (1u << 19)
#define O_WORDS (1u << 22)
#define O_NO_HASH
#include "oracle.h"

#define THREADS 100000
#define AT_ONCE 40

static void *handed[64];
static uint64_t blocks, bytes, frees;

static void count(uint64_t *what, uint64_t by) { __atomic_fetch_add(what, by, __ATOMIC_RELAXED); }

static void *brief(void *arg) {
  size_t number = (size_t)arg, of = number % 200;
  void *own = o_calloc(2, 16 + of);
  void *given = o_malloc(300 + of);
  count(&blocks, 2);
  count(&bytes, 2 * (16 + of) + 300 + of);
  if (number % 1000) o_free(own), count(&frees, 1); // the others leak
  void *taken = __atomic_exchange_n(&handed[number % 64], given, __ATOMIC_ACQ_REL);
  if (taken) o_free(taken), count(&frees, 1);
  return NULL;
}

int main(void) {
  static pthread_t threads[AT_ONCE];
  pthread_attr_t attr;
  O_CHECK(!pthread_attr_init(&attr) && !pthread_attr_setstacksize(&attr, 128 << 10));
  for (size_t made = 0; made < THREADS; made += AT_ONCE) {
    for (size_t i = 0; i < AT_ONCE; i++) O_CHECK(!pthread_create(&threads[i], &attr, brief, (void *)(made + i)));
    for (size_t i = 0; i < AT_ONCE; i++) O_CHECK(!pthread_join(threads[i], NULL));
  }
  o_fact(0, THREADS);
  o_fact(1, blocks);
  o_fact(2, bytes);
  o_fact(3, frees);
  return o_end(0);
}
