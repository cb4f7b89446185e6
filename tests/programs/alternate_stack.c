// An alternate signal stack that is an array inside main's own frame: the handlers' frames lie between those of the flow they
// interrupt. The handler maps and unmaps at a high rate, at any instruction of the allocator, while deeper code allocates.
// One argument: rounds, of 100 blocks each. A second one, "count": blocks are counted, not noted, to be many.
#define O_NO_HASH
#include "oracle.h"
#include <time.h>

#define HANDLER_MAP 12288 // a length that nothing else in the program maps

static volatile uint64_t handled;
static uint64_t pairs;
static int counting;

static void on_alarm(int sig) {
  (void)sig;
  int saved = errno;
  void *p = mmap(NULL, HANDLER_MAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  O_CHECK(p != MAP_FAILED && !munmap(p, HANDLER_MAP));
  handled++;
  errno = saved;
}

static void __attribute__((noinline)) bulk(void) {
  for (int i = 0; i < 100; i++) {
    void *volatile p = malloc(100);
    free(p);
    pairs++;
  }
}

static void __attribute__((noinline)) noted(void) {
  for (int i = 0; i < 100; i++) {
    void *p = o_malloc(100);
    o_free(p);
    pairs++;
  }
}

static void __attribute__((noinline)) deep(int n) {
  if (n) deep(n - 1);
  else if (counting) bulk();
  else noted();
  __asm__ volatile("");
}

int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 100;
  counting = argc > 2 && !strcmp(argv[2], "count");
  char alt[64 << 10];
  stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt};
  O_CHECK(!sigaltstack(&ss, NULL));
  struct sigaction a = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK | SA_RESTART};
  O_CHECK(!sigaction(SIGALRM, &a, NULL));
  timer_t timer;
  struct sigevent by = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
  O_CHECK(!timer_create(CLOCK_MONOTONIC, &by, &timer));
  struct itimerspec every = {{0, 50000}, {0, 50000}}, never = {{0, 0}, {0, 0}};
  O_CHECK(!timer_settime(timer, 0, &every, NULL));
  for (int i = 0; i < rounds; i++) deep(5 + i % 7);
  while (handled < 100) sched_yield();
  O_CHECK(!timer_settime(timer, 0, &never, NULL));
  o_fact(0, handled);
  o_fact(1, pairs);
  signal(SIGALRM, SIG_IGN); // a pending one would make the observation differ from run to run
  o_observe();
  o_flush();
  return 0;
}
