// A program whose heap is busy: `busy`, until a line comes on its standard input.
//   churn_here  some 200,000 blocks a second (-DCHURNED=100: 100,000) of 16 to 512 bytes, freed at once or after up to a thousand others
//   leak_here   1 MB a second in blocks of 1,000 bytes, never freed
//   cache_here  2,000 bytes a block, 4,000 blocks in all: the oldest goes when a new one comes
// By the clock, so that it leaks as much a second on any machine. Notes nothing but facts, after every round:
// [0] bytes leaked, [1] bytes in the cache, [2] allocations, [3] bytes in the churn's blocks.
#define O_CAP 16
#define O_WORDS 16
#define O_NO_STACKS
#include "oracle.h"
#include <poll.h>
#include <time.h>

#ifndef CHURNED
#define CHURNED 200 // in a millisecond
#endif

enum { CHURN = 1000, CACHE = 4000, LEAK = 1000, CACHED = 2000 };
static void *churned[CHURN], *cached[CACHE], *volatile last;
static size_t churned_size[CHURN];

__attribute__((noinline)) void *leak_here(size_t n) {
  void *p = malloc(n);
  memset(p, 1, n);
  return last = p;
}
__attribute__((noinline)) void *cache_here(size_t n) {
  void *p = malloc(n);
  memset(p, 2, n);
  return last = p;
}
__attribute__((noinline)) void *churn_here(size_t n) {
  void *p = malloc(n);
  *(volatile char *)p = 3;
  return last = p;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(void) {
  uint64_t leaked = 0, in_cache = 0, allocations = 0, in_churn = 0;
  unsigned state = 1;
  double began = now();
  uint64_t rounds = 0;
  O_CHECK(write(1, "ready\n", 6) == 6);
  for (;; rounds++) {
    // A millisecond's work, or what has been missed of it.
    double due = began + (double)rounds / 1000;
    double early = due - now();
    struct pollfd in = {0, POLLIN, 0};
    if (early > 0) {
      struct timespec nap = {0, (long)(early * 1e9)};
      nanosleep(&nap, NULL);
    } else if (early < -0.1) {
      began -= early; // it was held up: what it has not done is not made up for
    }
    if (rounds % 16 == 0 && poll(&in, 1, 0) > 0) break;
    for (int i = 0; i < CHURNED; i++) {
      state = state * 1103515245u + 12345u;
      unsigned at = (state >> 16) % CHURN;
      size_t n = 16 + (state >> 8) % 497;
      free(churned[at]);
      in_churn += n - churned_size[at];
      churned[at] = churn_here(n);
      churned_size[at] = n;
      allocations++;
    }
    leak_here(LEAK);
    leaked += LEAK;
    unsigned at = rounds % CACHE;
    if (cached[at]) free(cached[at]);
    else in_cache += CACHED;
    cached[at] = cache_here(CACHED);
    allocations += 2;
    o_fact(0, leaked);
    o_fact(1, in_cache);
    o_fact(2, allocations);
    o_fact(3, in_churn);
  }
  return 0;
}
