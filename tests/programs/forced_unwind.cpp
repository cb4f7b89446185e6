// Stacks that are unwound by force: threads that are cancelled while they sleep, threads that leave by pthread_exit from deep within, and at
// the end an exception that meets noexcept. Destructors on the way allocate and release, and so does the handler that ends the program.
#define O_CAP (1u << 18)
#include "oracle.h"
#include <exception>
#include <pthread.h>
#include <stdexcept>

struct Held {
  void *p;
  explicit Held(size_t n) : p(o_malloc(n)) {}
  ~Held() {
    void *q = o_malloc(77);
    o_free(p);
    o_free(q);
  }
};

enum how { CANCELLED, EXITS };

__attribute__((noinline)) static void deep(int depth, how way) {
  Held held(100 + (size_t)depth);
  if (depth > 0) {
    deep(depth - 1, way);
    __asm__ volatile("" ::: "memory");
    return;
  }
  if (way == EXITS) pthread_exit(o_malloc(33));
  pthread_testcancel();
  for (;;) usleep(1000); // where it is cancelled
}

static void *exits(void *) { deep(20, EXITS); return nullptr; }
static void *cancelled(void *) { deep(20, CANCELLED); return nullptr; }

__attribute__((noinline)) static void throws(int depth) {
  Held held(300);
  if (!depth) throw std::runtime_error("met by noexcept");
  throws(depth - 1);
  __asm__ volatile("" ::: "memory");
}
__attribute__((noinline)) static void meets() noexcept {
  throws(5);
  __asm__ volatile("" ::: "memory");
}

static void ends() {
  o_free(o_malloc(55));
  _exit(7);
}

int main() {
  for (int i = 0; i < 60; i++) {
    pthread_t t;
    void *left;
    O_CHECK(!pthread_create(&t, nullptr, exits, nullptr) && !pthread_join(t, &left));
    o_free(left);
    O_CHECK(!pthread_create(&t, nullptr, cancelled, nullptr));
    if (i % 2) usleep(500);
    O_CHECK(!pthread_cancel(t) && !pthread_join(t, &left) && left == PTHREAD_CANCELED);
  }
  std::set_terminate(ends);
  meets();
  return 1;
}
