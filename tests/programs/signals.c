// Signal handlers that allocate, at a high rate, on the normal and on an alternate stack. The main flow computes with
// signals open and allocates with them blocked: malloc itself may not be interrupted by a handler that calls it.
#define O_CAP (1u << 20) // how often an alarm comes in is the machine's affair
#define O_WORDS (1u << 23)
#define O_NO_HASH
#include "oracle.h"
#include <sys/time.h>
#include <time.h>

static volatile uint64_t handled, on_alt, sink;
static char alt[256 << 10];

static void __attribute__((noinline)) in_handler(void) {
  void *p = o_malloc(72);
  p = o_realloc(p, 720);
  o_free(p);
}

static void on_alarm(int sig) {
  (void)sig;
  int saved = errno;
  in_handler();
  handled++;
  errno = saved;
}

static void on_user(int sig) {
  char here;
  (void)sig;
  O_CHECK(&here >= alt && &here < alt + sizeof alt);
  void *p = o_malloc(96);
  o_free(p);
  on_alt++;
}

static int __attribute__((noinline)) compute(int depth) {
  if (depth) return compute(depth - 1) + 1;
  for (int i = 0; i < 300; i++) sink += (uint64_t)i * sink + 1;
  return 0;
}

static void *poke(void *target) {
  for (int i = 0; i < 3000; i++) {
    uint64_t before = on_alt;
    pthread_kill(*(pthread_t *)target, SIGUSR2);
    while (on_alt == before) sched_yield();
  }
  return NULL;
}

int main(void) {
  stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt};
  O_CHECK(!sigaltstack(&ss, NULL));
  struct sigaction a = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
  sigfillset(&a.sa_mask);
  O_CHECK(!sigaction(SIGALRM, &a, NULL));
  a.sa_handler = on_user;
  a.sa_flags = SA_RESTART | SA_ONSTACK;
  O_CHECK(!sigaction(SIGUSR2, &a, NULL));
  o_restorer(SIGUSR2);
  sigset_t both, old;
  sigemptyset(&both);
  sigaddset(&both, SIGALRM);
  sigaddset(&both, SIGUSR2);
  pthread_t self = pthread_self(), poker;
  sigprocmask(SIG_BLOCK, &both, &old);
  O_CHECK(!pthread_create(&poker, NULL, poke, &self));
  sigprocmask(SIG_SETMASK, &old, NULL);
  struct itimerval every = {{0, 100}, {0, 100}};
  setitimer(ITIMER_REAL, &every, NULL);
  for (int i = 0; (handled < 2000 || on_alt < 3000) && i < 100000000; i++) {
    compute(i % 20);
    if (i % 16 == 0) {
      sigprocmask(SIG_BLOCK, &both, &old);
      if (o_head && o_head->used_recs < O_CAP / 16) {
        void *p = o_malloc(48);
        o_free(p);
      }
      sigprocmask(SIG_SETMASK, &old, NULL);
    }
  }
  struct itimerval never = {{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &never, NULL);
  sigprocmask(SIG_BLOCK, &both, &old);
  pthread_join(poker, NULL);
  O_CHECK(handled >= 2000 && on_alt == 3000);
  o_fact(0, handled);
  o_fact(1, on_alt);
  signal(SIGALRM, SIG_IGN); // a pending one would make the observation differ from run to run
  o_observe();
  o_flush();
  return 0;
}
