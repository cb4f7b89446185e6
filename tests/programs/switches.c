// Fibers with switches written by hand, as boost.context has them: nothing but the callee-saved registers and the stack pointer moves. They
// allocate at every depth, hand blocks to each other, and their stacks (from malloc and from mmap) are released and used again.
#define O_CAP (1u << 18)
#include "oracle.h"
#include <sys/mman.h>

#define FIBERS 6
#define BYTES (96 << 10)

// Saves here, goes on there. The frame of the caller stays whole, and unwinding from the other side ends at `begin`.
__attribute__((naked, noinline)) static void jump(void **save, void *to) {
  __asm__ volatile(
      "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}

static void *hub, *fiber[FIBERS], *stack[FIBERS], *handed;
static int running, turns;

static void yield(void) { jump(&fiber[running], hub); }

__attribute__((noinline)) static void deep(int depth) {
  void *p = o_malloc(50 + (size_t)depth * 3);
  if (depth % 3 == 0) yield();
  if (depth > 0) deep(depth - 1);
  void *mine = handed;
  handed = p;
  o_free(mine);
  __asm__ volatile("" ::: "memory");
}

__attribute__((noinline)) static void body(void) {
  for (int i = 0; i < 4; i++) deep(12 + running);
  fiber[running] = NULL;
  void *nowhere;
  jump(&nowhere, hub);
}

// The first frame: its return address is 0, as the ABI has it for the outermost one.
__attribute__((naked, noinline)) static void begin(void) {
  __asm__ volatile(".cfi_undefined rip\n xor %%ebp, %%ebp\n call *%%rbx\n ud2" ::: "memory");
}

static void *made(void *memory) {
  void **top = (void **)((char *)memory + BYTES) - 2;
  *--top = (void *)begin;
  *--top = NULL;         // rbp
  *--top = (void *)body; // rbx
  for (int i = 0; i < 4; i++) *--top = NULL;
  return top;
}

int main(void) {
  for (int round = 0; round < 30; round++) {
    for (int i = 0; i < FIBERS; i++) {
      stack[i] = i % 2 ? o_aligned_alloc(4096, BYTES) : mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      O_CHECK(stack[i] && stack[i] != MAP_FAILED);
      fiber[i] = made(stack[i]);
    }
    for (int alive = 1; alive;) {
      alive = 0;
      for (int i = 0; i < FIBERS; i++) {
        if (!fiber[i]) continue;
        alive = 1, running = i, turns++;
        jump(&hub, fiber[i]);
        o_free(o_malloc(9));
      }
    }
    for (int i = 0; i < FIBERS; i++) {
      if (i % 2) o_free(stack[i]);
      else O_CHECK(!munmap(stack[i], BYTES));
    }
  }
  o_free(handed);
  o_fact(0, (uint64_t)turns);
  return 0;
}
