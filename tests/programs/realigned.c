// Leaf frames that realign the stack: the frame's size depends on where the stack pointer stood, and the CFA is a saved register.
// Reached by two paths of different size from one that shifts, so that one place on the stack is the frame of now this path, now that.
#include "oracle.h"
#include <alloca.h>

static void (*const volatile note)(enum o_op, uintptr_t, uint64_t, uintptr_t) __attribute__((used)) = o_note_at;
static uint64_t asked __attribute__((used));

// Calls fn(size) with `shift` bytes more on the stack, which must be a multiple of 16.
void shifted(void (*fn)(uint64_t), uint64_t size, uint64_t shift);
void small_path(uint64_t size);
void large_path(uint64_t size);
__asm__(
    ".text\n.globl shifted\n.type shifted,@function\nshifted:\n.cfi_startproc\n"
    " push %rbp\n .cfi_def_cfa_offset 16\n .cfi_offset rbp,-16\n mov %rsp,%rbp\n .cfi_def_cfa_register rbp\n"
    " sub %rdx,%rsp\n mov %rdi,%rax\n mov %rsi,%rdi\n call *%rax\n leave\n .cfi_def_cfa rsp,8\n ret\n"
    ".cfi_endproc\n.size shifted,.-shifted\n"
    ".globl small_path\n.type small_path,@function\nsmall_path:\n.cfi_startproc\n"
    " sub $8,%rsp\n .cfi_adjust_cfa_offset 8\n call realigned\n add $8,%rsp\n .cfi_adjust_cfa_offset -8\n ret\n"
    ".cfi_endproc\n.size small_path,.-small_path\n"
    ".globl large_path\n.type large_path,@function\nlarge_path:\n.cfi_startproc\n"
    " sub $24,%rsp\n .cfi_adjust_cfa_offset 24\n call realigned\n add $24,%rsp\n .cfi_adjust_cfa_offset -24\n ret\n"
    ".cfi_endproc\n.size large_path,.-large_path\n"
    // As gcc writes a realigned frame with a dynamic-realign argument pointer (DRAP) in r10.
    ".type realigned,@function\nrealigned:\n.cfi_startproc\n"
    " lea 8(%rsp),%r10\n .cfi_def_cfa r10,0\n and $-64,%rsp\n push -8(%r10)\n push %rbp\n mov %rsp,%rbp\n"
    " .cfi_escape 0x10,0x6,0x2,0x76,0\n push %r10\n .cfi_escape 0xf,0x3,0x76,0x78,0x6\n sub $104,%rsp\n"
    " mov %rdi,asked(%rip)\n call malloc@PLT\n"
    " mov $1,%edi\n mov %rax,%rsi\n mov asked(%rip),%rdx\n xor %ecx,%ecx\n call *note(%rip)\n"
    " mov -8(%rbp),%r10\n .cfi_def_cfa r10,0\n leave\n lea -8(%r10),%rsp\n .cfi_def_cfa rsp,8\n ret\n"
    ".cfi_endproc\n.size realigned,.-realigned\n");

// The same by the compiler: an aligned local beside one of run-time size.
static void __attribute__((noinline)) by_compiler(uint64_t size) {
  volatile char aligned[64] __attribute__((aligned(64)));
  volatile char *more = alloca(size % 5 * 16 + 16);
  O_CHECK((uintptr_t)aligned % 64 == 0);
  aligned[0] = more[0] = 1;
  void *p = o_malloc(size);
  o_free(p);
  aligned[1] = more[1] = aligned[0];
}

int main(void) {
  for (uint64_t i = 0; i < 4000; i++) {
    uint64_t shift = i / 4 % 9 * 16;
    shifted(i & 1 ? large_path : small_path, (i & 1 ? 2000 : 1000) + i % 16, shift);
    if (i % 3 == 0) shifted(by_compiler, 500 + i % 16, i / 2 % 9 * 16);
  }
  return o_end(0);
}
