// Changes of the mode while it is recorded. Two threads allocate and free all the time; the main thread obeys: "keep", "more" and "drop"
// each end a step of the test; "end" ends it. What each step keeps is known, and every block says whose it is.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined FAMILY_JEMALLOC
extern void *_rjem_malloc(size_t), *_rjem_realloc(void *, size_t);
extern void _rjem_free(void *);
#define malloc _rjem_malloc
#define realloc _rjem_realloc
#define free _rjem_free
#endif

#define KEPT 100
static atomic_int over;
static char *kept[64][KEPT];
static int steps, dropped;

__attribute__((noinline)) char *keep_here(size_t n) { char *p = malloc(n); memset(p, 1, n); return p; }
__attribute__((noinline)) char *more_here(char *p, size_t n) { p = realloc(p, n); memset(p, 2, n); return p; }
__attribute__((noinline)) char *churn_here(size_t n) { char *p = malloc(n); memset(p, 3, n); return p; }

static void *churn(void *seed) {
  unsigned x = (unsigned)(size_t)seed;
  while (!atomic_load(&over)) {
    char *blocks[8];
    size_t sizes[8];
    for (int i = 0; i < 8; i++) {
      x = x * 1664525 + 1013904223;
      blocks[i] = churn_here(sizes[i] = 16 + (x >> 20) % 2000);
    }
    for (int i = 0; i < 8; i++) {
      if (blocks[i][sizes[i] - 1] != 3) abort();
      free(blocks[i]);
    }
    usleep(2000); // every call is watched: hound must be able to keep up
  }
  return 0;
}

int main(void) {
  pthread_t threads[2];
  char line[64];
  setvbuf(stdout, 0, _IONBF, 0);
  for (size_t i = 0; i < 2; i++) pthread_create(&threads[i], 0, churn, (void *)(i + 1));
  write(1, "ready\n", 6);
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    if (!strcmp(line, "keep")) {
      for (int i = 0; i < KEPT; i++) kept[steps][i] = keep_here(1000 + steps);
      steps++;
    } else if (!strcmp(line, "more")) {
      for (int i = 0; i < KEPT; i++) kept[steps - 1][i] = more_here(kept[steps - 1][i], 3000 + steps);
    } else if (!strcmp(line, "drop")) {
      for (int i = 0; i < KEPT; i++) free(kept[dropped][i]);
      dropped++;
    } else break;
    printf("done %s\n", line);
  }
  atomic_store(&over, 1);
  for (int i = 0; i < 2; i++) pthread_join(threads[i], 0);
  return 0;
}
