// A fiber runs on the whole of a stack, then others on its lower half. Another thread unmaps the upper half, and a fiber starts
// again right below the hole: whoever reads past its outermost frame, or what it remembers of the first fiber, is killed.
#define O_NO_HASH
#include "oracle.h"

#define HALF 32768
#define ROUNDS 200

// Saves the callee-saved registers on this stack, leaves its pointer in *save, and goes on where `to` was saved.
void switch_to(void **save, void *to);
__asm__(".text\n.globl switch_to\n.type switch_to,@function\nswitch_to:\n"
        " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
        " mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
        " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n.size switch_to,.-switch_to\n");

// The outermost function of a fiber: by its unwind rules it has a caller, whose address would be at the very top of the stack.
void entry(void);
__asm__(".globl entry\n.type entry,@function\nentry:\n.cfi_startproc\n"
        " sub $8,%rsp\n .cfi_adjust_cfa_offset 8\n call body\n ud2\n.cfi_endproc\n.size entry,.-entry\n");

static void *main_sp, *fiber_sp;
static char *region;
static uint64_t fibers;

__attribute__((noinline, used)) static void touch(int depth) {
  void *p = o_malloc(100 + (size_t)depth);
  if (depth) touch(depth - 1);
  o_free(p);
}

__attribute__((used)) void body(void) {
  o_stacks = 0; // backtrace(3) would itself read past the top
  touch(3);
  o_stacks = 1;
  fibers++;
  switch_to(&fiber_sp, main_sp);
}

static void __attribute__((noinline)) run(char *top) {
  void **s = (void **)top;
  *--s = (void *)entry;
  for (int i = 0; i < 6; i++) *--s = NULL;
  switch_to(&main_sp, s);
}

static void *unmap_upper(void *unused) {
  (void)unused;
  O_CHECK(!munmap(region + HALF, HALF));
  return NULL;
}

int main(void) {
  for (int i = 0; i < ROUNDS; i++) {
    region = mmap(NULL, 2 * HALF, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    O_CHECK(region != MAP_FAILED);
    touch(1);
    run(region + 2 * HALF - 16);
    run(region + HALF - 16);
    touch(0);
    pthread_t t;
    O_CHECK(!pthread_create(&t, NULL, unmap_upper, NULL));
    pthread_join(t, NULL);
    touch(2);
    run(region + HALF); // its first return leaves the stack pointer at the very edge of the hole
    run(region + HALF - 16);
    O_CHECK(!munmap(region, HALF));
  }
  O_CHECK(fibers == 4 * ROUNDS);
  return o_end(0);
}
