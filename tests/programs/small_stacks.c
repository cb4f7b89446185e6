// Threads on the smallest stacks there may be, that use them to a few hundred bytes, some of them while a signal is handled on an alternate
// stack; two thousand of them alive at once.
#define O_CAP (1u << 17)
#define O_NO_STACKS
#include "oracle.h"
#include <limits.h>

#define THREADS 2000

static pthread_barrier_t all;
static void *kept[THREADS];

static void handler(int sig) {
  (void)sig;
  o_free(o_malloc(21));
}

static void *work(void *arg) {
  long number = (long)arg;
  // A frame of AVX-512 and what the handler does with it.
  static char alternate[THREADS / 10][8192];
  stack_t old = {0}, small = {.ss_sp = alternate[number / 10], .ss_size = sizeof alternate[0]};
  int has = number % 10 == 0 && !sigaltstack(&small, NULL);
  for (int i = 0; i < 5; i++) o_free(o_malloc(100 + (size_t)i));
  kept[number] = o_malloc(200 + (size_t)number % 50);
  if (has) pthread_kill(pthread_self(), SIGUSR1);
  if (has) {
    old.ss_flags = SS_DISABLE;
    sigaltstack(&old, NULL);
  }
  pthread_barrier_wait(&all);
  o_free(kept[(number + 1) % THREADS]);
  return NULL;
}

int main(void) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
  O_CHECK(!sigaction(SIGUSR1, &action, NULL));
  pthread_attr_t attr;
  O_CHECK(!pthread_attr_init(&attr) && !pthread_attr_setstacksize(&attr, PTHREAD_STACK_MIN));
  O_CHECK(!pthread_barrier_init(&all, NULL, THREADS));
  static pthread_t threads[THREADS];
  for (long i = 0; i < THREADS; i++) O_CHECK(!pthread_create(&threads[i], &attr, work, (void *)i));
  for (int i = 0; i < THREADS; i++) O_CHECK(!pthread_join(threads[i], NULL));
  o_fact(0, THREADS);
  return 0;
}
