// Many threads that allocate and check their blocks, until an order says how to end: attach_ends CONTROL, where the file CONTROL holds one.
//   exit, exec, crash (a bad access), abort, main-first (the main thread ends before the others), grow (until there is no more memory)
// Says "ready" when all work, "round" now and then. What is wrong with a block is told on standard error.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 8
#define HELD 64

static volatile int going = WORKERS;

__attribute__((noinline)) void *busy_here(size_t n) {
  unsigned char *p = malloc(n);
  memset(p, (int)(n & 0x7f), n);
  return p;
}
__attribute__((noinline)) void *grow_here(size_t n) {
  unsigned char *p = malloc(n);
  if (p) memset(p, 1, n);
  return p;
}

static volatile int leave;

static void *work(void *seed) {
  unsigned state = (unsigned)(size_t)seed;
  unsigned char *held[HELD] = {0};
  size_t sizes[HELD];
  for (unsigned n = 0; !leave; n++) {
    state = state * 1103515245u + 12345u;
    unsigned at = (state >> 16) % HELD;
    if (held[at]) {
      if (held[at][sizes[at] - 1] != (sizes[at] & 0x7f)) dprintf(2, "a block is wrong\n");
      free(held[at]);
    }
    sizes[at] = 1 + (state >> 8) % 900;
    held[at] = busy_here(sizes[at]);
    if (n == 100) __sync_fetch_and_sub(&going, 1);
    if (n % 64 == 0) nanosleep(&(struct timespec){0, 100000}, NULL);
  }
  for (int i = 0; i < HELD; i++) free(held[i]);
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t threads[WORKERS];
  if (argc < 2) return 2;
  for (size_t i = 0; i < WORKERS; i++)
    if (pthread_create(&threads[i], NULL, work, (void *)(i + 1))) return 3;
  while (going) usleep(1000);
  dprintf(1, "ready\n");
  for (;;) {
    char order[32] = {0};
    free(busy_here(1000));
    int fd = open(argv[1], O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
      if (read(fd, order, sizeof order - 1) < 0) return 4;
      close(fd);
    }
    if (!strcmp(order, "exit")) exit(7); // while the others allocate
    if (!strcmp(order, "exec")) execl("/bin/sleep", "sleep", "60", (char *)NULL);
    if (!strcmp(order, "crash")) *(volatile int *)0 = 1;
    if (!strcmp(order, "abort")) abort();
    if (!strcmp(order, "main-first")) leave = 1, pthread_exit(NULL);
    while (!strcmp(order, "grow")) grow_here(100000);
    dprintf(1, "round\n");
    usleep(10000);
  }
}
