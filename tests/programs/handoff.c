// Blocks made by one thread and freed by another at once, so that their addresses come back within nanoseconds: a
// profiler that stamps a free after the fact, or an alloc before it, sees the same address alive twice.
// Arguments: handoffs per pair, pairs. With "count" as third argument nothing is noted (too many to note). With a number
// N there, the makers pass N gates on their way: whoever watches opens them one by one by fact 2, which says how many
// are open, and sees in the facts from 3 on how far each maker is. So what is done to the program meanwhile is done while
// all of it runs, and before it ends.
#define O_CAP (1u << 22)
#define O_WORDS 1024
#define O_NO_STACKS
#define O_NO_HASH
#include "oracle.h"
#include <stdatomic.h>
#include <time.h>

#define RING 16
struct lane {
  _Alignas(64) _Atomic(void *) slot[RING];
  pthread_t maker, taker;
};
static struct lane lanes[8];
static uint64_t handoffs;
static int noting = 1;
static uint64_t gates;

// Where nobody opens the first gate nobody watches: there are none, then.
static void pass_gate(uint64_t gate) {
  time_t begun = time(NULL);
  while (__atomic_load_n(&o_head->fact[2], __ATOMIC_ACQUIRE) < gate) {
    if (time(NULL) > begun + (gate > 1 ? 120 : 8)) {
      O_CHECK(gate == 1);
      o_fact(2, ~0ull);
    }
    sched_yield();
  }
}

// tcache and arenas are off (see the test): all threads share one heap and its newest free chunk, so what the taker
// frees is what the maker gets next.
static void *make(void *arg) {
  struct lane *l = arg;
  uint64_t between = handoffs / (gates + 1) + 1;
  for (uint64_t i = 0; i < handoffs; i++) {
    if (gates && o_head) {
      if (i % between == 0) pass_gate(i / between);
      __atomic_store_n(&o_head->fact[3 + (l - lanes)], i, __ATOMIC_RELAXED);
    }
    void *p = noting ? o_malloc(48) : malloc(48);
    *(uint64_t *)p = i;
    _Atomic(void *) *s = &l->slot[i % RING];
    while (atomic_load_explicit(s, memory_order_acquire)) sched_yield();
    atomic_store_explicit(s, p, memory_order_release);
  }
  return NULL;
}

static void *take(void *arg) {
  struct lane *l = arg;
  for (uint64_t i = 0; i < handoffs; i++) {
    _Atomic(void *) *s = &l->slot[i % RING];
    void *p;
    while (!(p = atomic_load_explicit(s, memory_order_acquire))) sched_yield();
    O_CHECK(*(uint64_t *)p == i);
    atomic_store_explicit(s, NULL, memory_order_release);
    if (noting) o_free(p);
    else free(p);
  }
  return NULL;
}

int main(int argc, char **argv) {
  handoffs = argc > 1 ? strtoul(argv[1], NULL, 10) : 100000;
  int pairs = argc > 2 ? atoi(argv[2]) : 1;
  gates = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
  noting = argc <= 3 || gates;
  for (int i = 0; i < pairs; i++) {
    O_CHECK(!pthread_create(&lanes[i].maker, NULL, make, &lanes[i]));
    O_CHECK(!pthread_create(&lanes[i].taker, NULL, take, &lanes[i]));
  }
  for (int i = 0; i < pairs; i++) pthread_join(lanes[i].maker, NULL), pthread_join(lanes[i].taker, NULL);
  // How often an address came back. With thread caches on it hardly does: the test turns them off and asks for many.
  uint64_t reused = 0;
  if (noting && o_head) {
    static uint64_t seen[1 << 16];
    for (uint64_t i = 0; i < o_head->used_recs && i < o_head->cap; i++) {
      if (o_recs[i].op != O_MALLOC) continue;
      uint64_t *s = &seen[o_recs[i].addr >> 4 & 0xffff];
      reused += *s == o_recs[i].addr;
      *s = o_recs[i].addr;
    }
  }
  o_fact(0, reused);
  o_fact(1, handoffs * (uint64_t)pairs);
  return o_end(0);
}
