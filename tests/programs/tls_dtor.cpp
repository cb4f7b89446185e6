// Thread-exit hooks that allocate and free: pthread keys (which set themselves again, for another round) and C++
// thread_local destructors; also in the main thread, at exit.
#define O_NO_HASH
#include "oracle.h"
#include <thread>

static pthread_key_t key;
static uint64_t key_rounds, local_ends;

static void on_key(void *value) {
  __atomic_fetch_add(&key_rounds, 1, __ATOMIC_RELAXED);
  uintptr_t round = *(uintptr_t *)value;
  o_free(value);
  void *p = o_malloc(64);
  o_free(p);
  if (round < 3) {
    uintptr_t *next = (uintptr_t *)o_malloc(sizeof *next);
    *next = round + 1;
    pthread_setspecific(key, next);
  }
}

struct Local {
  void *p = nullptr;
  void touch() { p = o_malloc(128); }
  ~Local() {
    __atomic_fetch_add(&local_ends, 1, __ATOMIC_RELAXED);
    void *q = o_malloc(256);
    o_free(p);
    o_free(q);
  }
};
static thread_local Local local;

static void body() {
  local.touch();
  uintptr_t *first = (uintptr_t *)o_malloc(sizeof *first);
  *first = 1;
  pthread_setspecific(key, first);
}

int main() {
  O_CHECK(!pthread_key_create(&key, on_key));
  for (int i = 0; i < 50; i++) {
    std::thread t(body);
    t.join();
  }
  O_CHECK(key_rounds == 150 && local_ends == 50);
  local.touch(); // the main thread's own, destroyed during exit
  o_fact(0, key_rounds);
  return o_end(0);
}
