// Replaces itself by itself, three times or as often as the argument says. Each image allocates in two threads, leaves a block behind, and notes into
// a file of its own: ORACLE_FILE, then the same with .1, .2 and so on.
#define O_NO_HASH
#include "oracle.h"

static void *work(void *arg) {
  void *held[50];
  for (size_t i = 0; i < 50; i++) held[i] = o_malloc(100 + i + (size_t)arg);
  for (size_t i = 0; i < 50; i++) o_free(held[i]);
  return NULL;
}

int main(int argc, char **argv) {
  int all = argc > 1 ? atoi(argv[1]) : 3, number = argc > 2 ? atoi(argv[2]) : 0;
  pthread_t thread;
  O_CHECK(!pthread_create(&thread, NULL, work, (void *)1000));
  work(NULL);
  O_CHECK(!pthread_join(thread, NULL));
  // A mapping of its own: the next image has no block at its address, however it is laid out.
  memset(o_malloc((300 << 10) + (size_t)number), 1, 1000);
  o_say("image %d\n", number);
  if (number == all) return o_end(7);
  char file[4096], total[16], next[16], *name = getenv("ORACLE_FILE");
  if (name) {
    size_t length = strlen(name) - (number ? strlen(strrchr(name, '.')) : 0);
    snprintf(file, sizeof file, "%.*s.%d", (int)length, name, number + 1);
    O_CHECK(!setenv("ORACLE_FILE", file, 1));
  }
  snprintf(total, sizeof total, "%d", all);
  snprintf(next, sizeof next, "%d", number + 1);
  o_summary();
  o_observe();
  o_flush();
  execl("/proc/self/exe", argv[0], total, next, (char *)NULL);
  o_fail("execl", __LINE__);
}
