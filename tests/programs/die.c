// Leaks, then ends in the way named: exit, _exit, quick_exit, abort, kill, segv, trap, thread-exit (main leaves first).
#include "oracle.h"

static volatile int *volatile nowhere = (volatile int *)8;

static void __attribute__((noinline)) leak_here(size_t n) { void *p = o_malloc(n); memset(p, 1, n); }

static void *last_thread(void *arg) {
  pthread_join(*(pthread_t *)arg, NULL);
  leak_here(777);
  exit(31);
}

int main(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "exit";
  for (size_t i = 0; i < 100; i++) leak_here(1000 + i);
  if (!strcmp(how, "_exit")) _exit(21);
  if (!strcmp(how, "quick_exit")) quick_exit(22);
  if (!strcmp(how, "syscall")) syscall(SYS_exit_group, 24);
  if (!strcmp(how, "abort")) abort();
  if (!strcmp(how, "kill")) kill(getpid(), SIGKILL);
  if (!strcmp(how, "term")) raise(SIGTERM);
  if (!strcmp(how, "segv")) *nowhere = 1;
  if (!strcmp(how, "trap")) __builtin_trap();
  if (!strcmp(how, "thread")) {
    static pthread_t self;
    pthread_t t;
    self = pthread_self();
    O_CHECK(!pthread_create(&t, NULL, last_thread, &self));
    pthread_exit(NULL);
  }
  return 20;
}
