// ucontext fibers that allocate, switch away at every depth, and whose stacks are freed and reused at once: what a
// remembered stack says about a fiber that is gone must never be believed, nor read where it is unmapped.
#define O_CAP (1u << 17)
#include "oracle.h"

#define STACK (256 << 10)
#define FIBERS 8
static ucontext_t hub, fiber[FIBERS];
static void *stacks[FIBERS];
static int running, switches;

static void yield_to_hub(void) {
  switches++;
  O_CHECK(swapcontext(&fiber[running], &hub) == 0);
}

static int __attribute__((noinline)) work(int depth) {
  void *p = o_malloc(32 + (size_t)depth);
  if (depth % 2) yield_to_hub();
  int sum = depth < 6 ? work(depth + 1) : 0;
  void *q = o_realloc(p, 200 + (size_t)depth);
  if (depth % 3 == 0) yield_to_hub();
  o_free(q);
  return sum + 1;
}

static void body(void) {
  O_CHECK(work(0) == 7);
  switches++;
}

int main(void) {
  static int round, left; // static: getcontext may return twice
  for (round = 0; round < 100; round++) {
    int done[FIBERS] = {0};
    for (int i = 0; i < FIBERS; i++) {
      stacks[i] = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      O_CHECK(stacks[i] != MAP_FAILED);
      getcontext(&fiber[i]);
      fiber[i].uc_stack.ss_sp = stacks[i];
      fiber[i].uc_stack.ss_size = STACK;
      fiber[i].uc_link = &hub;
      makecontext(&fiber[i], body, 0);
    }
    left = FIBERS;
    int visits[FIBERS] = {0};
    while (left) {
      for (int i = 0; i < FIBERS; i++) {
        if (done[i]) continue;
        running = i;
        swapcontext(&hub, &fiber[i]);
        void *p = o_malloc(24); // the hub allocates between two fibers
        o_free(p);
        if (++visits[i] == 7) { // 3 yields going down, 3 coming up, 1 at the end
          done[i] = 1, left--;
          munmap(stacks[i], STACK);
        }
      }
    }
  }
  o_fact(0, (uint64_t)switches);
  return o_end(0);
}
