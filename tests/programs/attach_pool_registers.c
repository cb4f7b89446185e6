// A pool whose functions keep to more than the calling convention asks: the compiler may build a static function's callers so that they count
// on the very registers it leaves alone, and it may take arguments from the stack. Callers here check every register around each call.
// A thread does so all the time, also while hooks come and go. Lines on standard input: "go" calls each 1000 times, "end" ends the program.
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static uint8_t arena[1 << 20];
uint8_t *arena_next = arena;

// Nothing but rax and the flags is touched: rdi is the size.
void *bump(uint64_t size);
__asm__(".text\n.type bump, @function\nbump:\n"
        ".cfi_startproc\n"
        "  movq arena_next(%rip), %rax\n"
        "  addq %rdi, arena_next(%rip)\n"
        "  ret\n"
        ".cfi_endproc\n.size bump, .-bump\n");

// Releases nothing, and touches nothing: rdi is the block.
void unbump(void *block);
__asm__(".type unbump, @function\nunbump:\n"
        ".cfi_startproc\n"
        "  testq %rdi, %rdi\n"
        "  nopw 0(%rax,%rax,1)\n"
        "  ret\n"
        ".cfi_endproc\n.size unbump, .-unbump\n");

// Its result is its size, a place where nothing is.
void *echo(uint64_t size);
__asm__(".type echo, @function\necho:\n"
        ".cfi_startproc\n"
        "  leaq 0(%rdi), %rax\n"
        "  nopw 0(%rax,%rax,1)\n"
        "  ret\n"
        ".cfi_endproc\n.size echo, .-echo\n");

// Ten integers and a structure in memory; the size is the third.
struct wide {
  uint64_t words[3];
};
__attribute__((noipa)) void *wide_alloc(uint64_t a, uint64_t b, uint64_t size, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h,
                                           struct wide w) {
  if (a != 1 || b != 2 || d != 4 || e != 5 || f != 6 || g != 7 || h != 8 || w.words[0] != 9 || w.words[2] != 11) return NULL;
  uint8_t *block = arena_next;
  arena_next += size;
  return block;
}

struct registers {
  uint64_t general[8]; // rcx rdx rsi rdi r8 r9 r10 r11
  uint8_t vector[16][16];
};

// Calls `function` with all registers as in `r`, and stores them back; rax is the result.
uint64_t call_with(struct registers *r, void *function);
__asm__(".type call_with, @function\ncall_with:\n"
        ".cfi_startproc\n"
        "  pushq %rbx\n"
        "  .cfi_adjust_cfa_offset 8\n"
        "  .cfi_rel_offset rbx, 0\n"
        "  movq %rdi, %rbx\n"
        "  movq %rsi, %rax\n"
        "  movq 0(%rbx), %rcx\n  movq 8(%rbx), %rdx\n  movq 16(%rbx), %rsi\n  movq 24(%rbx), %rdi\n"
        "  movq 32(%rbx), %r8\n  movq 40(%rbx), %r9\n  movq 48(%rbx), %r10\n  movq 56(%rbx), %r11\n"
        "  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n  movups 64+16*\\n(%rbx), %xmm\\n\n  .endr\n"
        "  call *%rax\n"
        "  movq %rcx, 0(%rbx)\n  movq %rdx, 8(%rbx)\n  movq %rsi, 16(%rbx)\n  movq %rdi, 24(%rbx)\n"
        "  movq %r8, 32(%rbx)\n  movq %r9, 40(%rbx)\n  movq %r10, 48(%rbx)\n  movq %r11, 56(%rbx)\n"
        "  .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n  movups %xmm\\n, 64+16*\\n(%rbx)\n  .endr\n"
        "  popq %rbx\n"
        "  .cfi_adjust_cfa_offset -8\n"
        "  ret\n"
        ".cfi_endproc\n.size call_with, .-call_with\n");

static int keeps_all(void *function, uint64_t first, uint64_t *result) {
  struct registers before, after;
  memset(&before, 0x5a, sizeof before);
  for (int i = 0; i < 8; ++i) before.general[i] = 0x1111111111111111ull * (i + 1);
  for (int i = 0; i < 16; ++i) before.vector[i][i] = i;
  before.general[3] = first;
  after = before;
  *result = call_with(&after, function);
  return memcmp(&before, &after, sizeof before) == 0;
}

static atomic_int over;
static atomic_ulong wrong, turns;

static void *all_the_time(void *unused) {
  while (!over) {
    uint64_t result;
    wrong += !keeps_all(echo, 4096, &result) || result != 4096;
    wrong += !keeps_all(unbump, 4096, &result);
    ++turns;
  }
  return unused;
}

int main(void) {
  char line[64];
  pthread_t thread;
  pthread_create(&thread, NULL, all_the_time, NULL);
  setvbuf(stdout, NULL, _IOLBF, 0);
  puts("ready");
  while (fgets(line, sizeof line, stdin) && strcmp(line, "end\n")) {
    for (int i = 0; i < 1000; ++i) {
      uint64_t block, none;
      arena_next = arena;
      wrong += !keeps_all(bump, 24, &block) || block != (uint64_t)arena;
      wrong += !keeps_all(unbump, block, &none);
      struct wide w = {{9, 10, 11}};
      wrong += wide_alloc(1, 2, 40, 4, 5, 6, 7, 8, w) != arena + 24;
      unbump(arena + 24);
    }
    printf("done %s", line);
  }
  over = 1;
  pthread_join(thread, NULL);
  if (wrong) fprintf(stderr, "%lu calls came out wrong, of those of %lu turns and more\n", wrong, turns);
  return wrong != 0;
}
