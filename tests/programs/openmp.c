// Teams of OpenMP: loops, tasks and nested teams that allocate, and release what other threads of the team have made.
#define O_CAP (1u << 18)
#include "oracle.h"
#include <omp.h>

#define BLOCKS 4000

static void *block[BLOCKS];

__attribute__((noinline)) static void task(int depth) {
  void *p = o_malloc(64 + (size_t)depth);
  if (depth > 0) {
#pragma omp task
    task(depth - 1);
#pragma omp task
    task(depth - 1);
#pragma omp taskwait
  }
  o_free(p);
}

int main(void) {
  omp_set_num_threads(4);
  for (int round = 0; round < 3; round++) {
#pragma omp parallel for schedule(dynamic, 7)
    for (int i = 0; i < BLOCKS; i++) block[i] = o_malloc(16 + (size_t)i % 700);
#pragma omp parallel for schedule(static)
    for (int i = 0; i < BLOCKS; i++) {
      if (i % 5 == 0) block[i] = o_realloc(block[i], 900);
    }
#pragma omp parallel for schedule(dynamic, 3)
    for (int i = BLOCKS - 1; i >= 0; i--) o_free(block[i]);
#pragma omp parallel
#pragma omp single
    task(8);
  }
  uint64_t teams = 0;
#pragma omp parallel reduction(+ : teams)
  teams++;
  o_fact(0, teams);
  return 0;
}
