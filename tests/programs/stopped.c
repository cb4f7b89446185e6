// Stops and resumes the recording again and again through the profiler's exported functions, which it must also do without. What
// happens in a stopped part is not noted; blocks made then are noted when they are freed in a recorded one.
#include "oracle.h"

#define ROUNDS 200

static void __attribute__((noinline)) unseen(int n) {
  void *volatile p[8];
  for (int i = 0; i < 8; i++) p[i] = malloc(3000 + (size_t)n);
  for (int i = 0; i < 8; i++) free(p[i]);
}

static void *unseen_thread(void *n) {
  unseen(*(int *)n);
  return NULL;
}

static void __attribute__((noinline)) seen(int n) {
  void *p = o_malloc(100 + (size_t)n), *q = o_calloc(3, 50 + (size_t)n);
  p = o_realloc(p, 400);
  o_free(q);
  o_free(p);
}

static void nothing(void) {}

int main(void) {
  void (*stop)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "memory_profiler_stop");
  void (*start)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "memory_profiler_start");
  O_CHECK(!stop == !start);
  o_fact(0, stop != NULL);
  if (!stop) stop = start = nothing;
  for (int i = 0; i < ROUNDS; i++) {
    seen(i);
    stop();
    if (i % 3 == 0) stop(); // twice is once
    unseen(i);
    pthread_t t;
    if (i % 20 == 0) {
      O_CHECK(!pthread_create(&t, NULL, unseen_thread, &i));
      pthread_join(t, NULL);
    }
    void *kept = malloc(3333);
    start();
    if (i % 5 == 0) start();
    o_free(kept);
  }
  o_fact(1, ROUNDS);
  return o_end(0);
}
