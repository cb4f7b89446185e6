// Allocates and frees in four threads until it is killed from outside; says "ready" once all are under way.
#define O_CAP (1u << 22)
#define O_WORDS 1024
#define O_NO_STACKS
#include "oracle.h"

static uint64_t under_way;

static void *busy(void *arg) {
  (void)arg;
  void *held[32] = {0};
  for (uint64_t i = 0;; i++) {
    if (i == 1000) __atomic_fetch_add(&under_way, 1, __ATOMIC_SEQ_CST);
    uint64_t k = i * 7 % 32;
    if (o_head->used_recs > O_CAP - 4096) pause();
    o_free(held[k]);
    held[k] = o_malloc(16 + i % 500);
    if (i % 64 == 0) sched_yield();
  }
  return NULL;
}

int main(void) {
  pthread_t t[4];
  for (int i = 0; i < 4; i++) O_CHECK(!pthread_create(&t[i], NULL, busy, NULL));
  while (__atomic_load_n(&under_way, __ATOMIC_SEQ_CST) < 4) sched_yield();
  dprintf(1, "ready\n");
  for (;;) pause();
}
