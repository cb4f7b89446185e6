// Blocks of three sorts, by size: short ones are freed at once (by the thread itself, or by the next one), long ones after
// more than HOLD milliseconds, and some never. Prints how many of each there were, and their bytes: "short N BYTES", …
// Arguments: rounds of each thread, HOLD in milliseconds. Lines on standard output "held" while the long ones are held.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS 4
#define LONG 50
#define NEVER 20
enum sort { SHORT, LONG_LIVED, LEAKED };
static uint64_t count[THREADS][3], bytes[THREADS][3];
static long rounds, hold_ms;
static pthread_barrier_t together;
static void *handed[THREADS];

__attribute__((noinline)) static void *get(int thread, enum sort sort, size_t n) {
  count[thread][sort]++;
  bytes[thread][sort] += n;
  return malloc(n);
}

static void churn(int thread) {
  for (long i = 0; i < rounds; i++) {
    void *p = get(thread, SHORT, 10 + (size_t)(i % 200));
    if (i % 7 == 0) {
      size_t n = 400 + (size_t)(i % 100);
      count[thread][SHORT]++, bytes[thread][SHORT] += n;
      p = realloc(p, n);
    }
    if (i % 3 == 0) {
      // The next thread frees it, or whoever comes first.
      p = __atomic_exchange_n(&handed[(thread + 1) % THREADS], p, __ATOMIC_ACQ_REL);
    }
    free(p);
  }
}

static void *work(void *arg) {
  int thread = (int)(intptr_t)arg;
  void *kept[LONG];
  for (int i = 0; i < LONG; i++) {
    kept[i] = get(thread, LONG_LIVED, 2000 + (size_t)i);
    if (i < NEVER) get(thread, LEAKED, 4000);
    churn(thread);
  }
  pthread_barrier_wait(&together);
  if (!thread) {
    for (int i = 0; i < THREADS; i++) free(__atomic_exchange_n(&handed[i], NULL, __ATOMIC_ACQ_REL));
    printf("held\n");
    fflush(stdout);
  }
  usleep((useconds_t)hold_ms * 1000);
  for (int i = 0; i < LONG; i++) {
    free(kept[i]);
    churn(thread);
  }
  return NULL;
}

int main(int argc, char **argv) {
  if (argc < 3) return 99;
  static char buffer[4096]; // no block of libc's
  setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
  rounds = atol(argv[1]), hold_ms = atol(argv[2]);
  pthread_t threads[THREADS];
  pthread_barrier_init(&together, NULL, THREADS);
  for (intptr_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)i);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < THREADS; i++) free(handed[i]);
  const char *names[] = {"short", "long", "leaked"};
  for (int sort = 0; sort < 3; sort++) {
    uint64_t all = 0, size = 0;
    for (int i = 0; i < THREADS; i++) all += count[i][sort], size += bytes[i][sort];
    printf("%s %llu %llu\n", names[sort], (unsigned long long)all, (unsigned long long)size);
  }
  return 0;
}
