// Threads with 8 KiB of stack, which glibc does not allow and musl does. They go down until so many bytes are left (the argument), and allocate
// there; every tenth does so in a signal's handler on an alternate stack of 8 KiB, too.
#define O_CAP (1u << 16)
#define O_NO_STACKS
#define O_NO_HASH
#include "oracle.h"
#include <limits.h>

#ifdef __GLIBC__ // where the 16 KiB are that it must be
#define STACK PTHREAD_STACK_MIN
#else
#define STACK 8192
#endif
#define THREADS 400

static size_t left = 2048;
static pthread_barrier_t all;
static void *kept[THREADS];
static volatile int reached;

static void handler(int sig) {
  (void)sig;
  void *p = o_malloc(21);
  p = o_realloc(p, 4000);
  o_free(p);
}

static void __attribute__((noinline)) churn(size_t number) {
  for (size_t i = 0; i < 5; i++) {
    void *p = o_calloc(1, 100 + i);
    p = o_realloc(p, 300 + number % 50);
    o_free(p);
  }
  kept[number] = o_malloc(200 + number % 50);
  __atomic_fetch_add(&reached, 1, __ATOMIC_RELAXED);
}

static void __attribute__((noinline)) down(size_t number, char *end) {
  char here;
  if ((size_t)(&here - end) > left + 96) down(number, end);
  else churn(number);
  __asm__ volatile("" : : "r"(&here) : "memory");
}

static void *work(void *arg) {
  size_t number = (size_t)arg;
  static char alternate[THREADS / 10][8192];
  stack_t off = {.ss_flags = SS_DISABLE}, small = {.ss_sp = alternate[number / 10], .ss_size = sizeof alternate[0]};
  int has = number % 10 == 0;
  if (has) {
    O_CHECK(!sigaltstack(&small, NULL));
    O_CHECK(!pthread_kill(pthread_self(), SIGUSR1));
    O_CHECK(!sigaltstack(&off, NULL));
  }
  pthread_attr_t attr;
  void *end;
  size_t size;
  O_CHECK(!pthread_getattr_np(pthread_self(), &attr) && !pthread_attr_getstack(&attr, &end, &size));
  down(number, (char *)end);
  pthread_barrier_wait(&all);
  o_free(kept[(number + 1) % THREADS]);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc > 1) left = strtoul(argv[1], NULL, 10);
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
  O_CHECK(!sigaction(SIGUSR1, &action, NULL));
  pthread_attr_t attr;
  O_CHECK(!pthread_attr_init(&attr) && !pthread_attr_setstacksize(&attr, STACK));
  O_CHECK(!pthread_barrier_init(&all, NULL, THREADS));
  static pthread_t threads[THREADS];
  for (size_t i = 0; i < THREADS; i++) O_CHECK(!pthread_create(&threads[i], &attr, work, (void *)i));
  for (size_t i = 0; i < THREADS; i++) O_CHECK(!pthread_join(threads[i], NULL));
  O_CHECK(reached == THREADS);
  o_fact(0, THREADS);
  return o_end(0);
}
