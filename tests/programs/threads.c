// Eight hot threads, then a churn of 2000 short ones (the number can be given): each allocates, frees, and leaks a little.
#define O_CAP (1u << 18)
#define O_NO_HASH
#include "oracle.h"

#define HOT 8

static void *hot(void *arg) {
  unsigned seed = (unsigned)(uintptr_t)arg;
  void *slot[64] = {0};
  for (int i = 0; i < 4000; i++) {
    seed = seed * 1103515245u + 12345u;
    unsigned k = seed >> 16 & 63;
    if (slot[k] && seed & 0x400000) slot[k] = o_realloc(slot[k], 1 + (seed >> 8 & 4095));
    else if (slot[k]) { o_free(slot[k]); slot[k] = NULL; }
    else slot[k] = o_malloc(1 + (seed >> 8 & 1023));
  }
  for (int i = 1; i < 64; i++) o_free(slot[i]); // slot 0 leaks, if it is full
  return NULL;
}

static void *brief(void *arg) {
  void *p = o_malloc(64 + (uintptr_t)arg % 100);
  void *q = o_calloc(2, 50);
  o_free(p);
  if ((uintptr_t)arg % 10) o_free(q);
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t t[16];
  for (uintptr_t i = 0; i < HOT; i++) O_CHECK(!pthread_create(&t[i], NULL, hot, (void *)(i + 1)));
  for (int i = 0; i < HOT; i++) pthread_join(t[i], NULL);
  uintptr_t churn = argc > 1 ? strtoul(argv[1], NULL, 10) : 2000;
  for (uintptr_t i = 0; i < churn; i += 16) {
    uintptr_t n = churn - i < 16 ? churn - i : 16;
    for (uintptr_t k = 0; k < n; k++) O_CHECK(!pthread_create(&t[k], NULL, brief, (void *)(i + k)));
    for (uintptr_t k = 0; k < n; k++) pthread_join(t[k], NULL);
  }
  o_fact(0, HOT + churn);
  return o_end(0);
}
