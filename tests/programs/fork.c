// Forks while threads allocate; both sides go on allocating. The parent's notes must be complete; the child runs on
// unharmed, unrecorded, and sees no trace of a profiler either. The parent passes on the child's status.
#define O_NO_HASH
#include "oracle.h"

static volatile int stop;

static void *busy(void *arg) {
  (void)arg;
  for (int i = 0; i < 20000 && !stop; i++) { void *p = o_malloc(80); o_free(p); }
  return NULL;
}

static int __attribute__((noinline)) child(void) {
  o_stop();
  void *keep[1000];
  for (int round = 0; round < 20; round++) {
    for (int i = 0; i < 1000; i++) { keep[i] = malloc(4242); memset(keep[i], i, 4242); }
    for (int i = 0; i < 1000; i++) { O_CHECK(((unsigned char *)keep[i])[4241] == (i & 255)); free(keep[i]); }
  }
  pthread_t t;
  O_CHECK(!pthread_create(&t, NULL, busy, NULL) && !pthread_join(t, NULL));
  return 41;
}

int main(void) {
  o_text_len = 0;
  pthread_t t;
  void *before = o_malloc(111);
  O_CHECK(!pthread_create(&t, NULL, busy, NULL));
  for (int i = 0; i < 5; i++) {
    pid_t pid = fork();
    O_CHECK(pid >= 0);
    if (pid == 0) {
      int status = child();
      if (i == 4) { o_say("child\n"); o_observe(); o_flush(); }
      _exit(status);
    }
    void *during = o_malloc(222);
    int status;
    O_CHECK(waitpid(pid, &status, 0) == pid);
    O_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 41);
    o_free(during);
  }
  stop = 1;
  pthread_join(t, NULL);
  o_free(before);
  before = o_malloc(333);
  O_CHECK(wait(NULL) == -1 && errno == ECHILD);
  errno = 0;
  o_observe();
  o_flush();
  return 5;
}
