// Touches memory as it is told, each kind from a function of its own, and says which pages.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
static void *volatile keep;
static volatile long sum;

// malloc'd memory, set by the C library.
static void __attribute__((noinline)) fill(long pages) {
  char *block = malloc(pages * PAGE + PAGE);
  char *start = (char *)(((uintptr_t)block + PAGE) & ~(PAGE - 1));
  memset(start, 1, pages * PAGE);
  keep = block;
}
// An anonymous mapping, in which huge pages may be had for the asking.
static void __attribute__((noinline)) fill_huge(long pages) {
  char *at = mmap(NULL, pages * PAGE + (2 << 20), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  at = (char *)(((uintptr_t)at + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
  madvise(at, pages * PAGE, MADV_HUGEPAGE);
  for (long i = 0; i < pages; i++) at[i * PAGE] = 1;
}
// Pages of a file, one by one: MADV_RANDOM maps none of those around.
static void __attribute__((noinline)) scan(const char *path, long pages) {
  int fd = open(path, O_RDWR | O_CREAT, 0600);
  if (ftruncate(fd, pages * PAGE)) exit(1);
  char *at = mmap(NULL, pages * PAGE, PROT_READ, MAP_SHARED, fd, 0);
  madvise(at, pages * PAGE, MADV_RANDOM);
  for (long i = 0; i < pages; i++) sum += at[i * PAGE];
  close(fd);
}
static void __attribute__((noinline)) copy(const char *path, long pages) {
  int fd = open(path, O_RDWR | O_CREAT, 0600);
  if (ftruncate(fd, pages * PAGE)) exit(1);
  char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  for (long i = 0; i < pages; i++) at[i * PAGE] = 1;
  close(fd);
}
static void __attribute__((noinline)) share(long pages) {
  char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (long i = 0; i < pages; i++) at[i * PAGE] = 1;
}
// A frame of a page each.
static void __attribute__((noinline)) descend(long pages) {
  volatile char frame[PAGE];
  frame[0] = 1;
  if (pages > 1) descend(pages - 1);
  frame[1] = 1;
}
static void *thread_descends(void *pages) {
  descend((long)pages);
  return NULL;
}
static void __attribute__((noinline)) grow(long pages) {
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, (pages + 64) * PAGE);
  pthread_t thread;
  pthread_create(&thread, &attr, thread_descends, (void *)pages);
  pthread_join(thread, NULL);
}
// The kernel writes into pages that nobody has touched.
static void __attribute__((noinline)) load(long pages) {
  char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int zero = open("/dev/zero", O_RDONLY);
  if (read(zero, at, pages * PAGE) != pages * PAGE) exit(1);
  close(zero);
}
static void __attribute__((noinline)) leak(void) {
  memset(malloc(8000), 1, 8000);
  __asm__ volatile(""); // no tail call: this function is on the stack while memset runs
}
static void __attribute__((noinline)) churn(void) {
  keep = malloc(64);
  free(keep);
}
static volatile int stop;
static void *leak_amid_churn(void *unused) {
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  while (!stop) {
    for (int i = 0; i < 100000 && !stop; i++) churn();
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    // A megabyte a second.
    while (now.tv_sec > next.tv_sec || (now.tv_sec == next.tv_sec && now.tv_nsec >= next.tv_nsec)) {
      leak();
      next.tv_nsec += 8000000;
      if (next.tv_nsec >= 1000000000) next.tv_nsec -= 1000000000, next.tv_sec++;
    }
  }
  return unused;
}

int main(int argc, char **argv) {
  // Pages are pages, unless it is told otherwise.
  int huge = argc > 1 && !strcmp(argv[1], "huge");
  if (prctl(PR_SET_THP_DISABLE, !huge, 0, 0, 0)) return 1;
  char line[300], word[300], path[300];
  long pages;
  pthread_t leaking;
  printf("ready\n");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    pages = 0, path[0] = 0;
    sscanf(line, "%299s %ld %299s", word, &pages, path);
    if (!strcmp(word, "fill")) fill(pages);
    else if (!strcmp(word, "huge")) fill_huge(pages);
    else if (!strcmp(word, "scan")) scan(path, pages);
    else if (!strcmp(word, "copy")) copy(path, pages);
    else if (!strcmp(word, "share")) share(pages);
    else if (!strcmp(word, "grow")) grow(pages);
    else if (!strcmp(word, "load")) load(pages);
    else if (!strcmp(word, "leak")) pthread_create(&leaking, NULL, leak_amid_churn, NULL);
    else if (!strcmp(word, "enough")) stop = 1, pthread_join(leaking, NULL);
    else if (!strcmp(word, "child")) {
      pid_t child = fork();
      if (child == 0) {
        fill(pages);
        _exit(0);
      }
      waitpid(child, NULL, 0);
    } else if (!strcmp(word, "end")) break;
    printf("done %s", line);
    fflush(stdout);
  }
  return 0;
}
