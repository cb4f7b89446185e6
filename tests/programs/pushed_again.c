// A frame with a frame pointer is popped and pushed again at another place, with a large frame outside of it untouched and a leaf
// inside that has overwritten rbp: its saved rbp is the only trace of the change, far from anything else that changed.
#include "oracle.h"

static void (*const volatile note)(enum o_op, uintptr_t, uint64_t, uintptr_t) __attribute__((used)) = o_note_at;
static uint64_t asked __attribute__((used));

#define NOTE " mov $1,%edi\n mov %rax,%rsi\n mov asked(%rip),%rdx\n xor %ecx,%ecx\n call *note(%rip)\n"

#define UNDER(name, bytes) \
  ".globl " name "\n.type " name ",@function\n" name ":\n.cfi_startproc\n" \
  " sub $" bytes ",%rsp\n .cfi_adjust_cfa_offset " bytes "\n mov %rdi,%rax\n mov %rsi,%rdi\n call *%rax\n" \
  " add $" bytes ",%rsp\n .cfi_adjust_cfa_offset -" bytes "\n ret\n.cfi_endproc\n.size " name ",.-" name "\n"

void under_large(void (*fn)(uint64_t), uint64_t size); // fn(size) below a frame of a page
void under_larger(void (*fn)(uint64_t), uint64_t size); // of four: what notes a shallow block does not write that far down
void near_path(uint64_t size);
void far_path(uint64_t size);
void shallow(uint64_t size);
__asm__(
    ".text\n" UNDER("under_large", "4104") UNDER("under_larger", "16392")
    // Both paths have `pointed` lay its innermost frame at the same place: 8 + 128 = 72 + 64.
    ".globl near_path\n.type near_path,@function\nnear_path:\n.cfi_startproc\n"
    " sub $8,%rsp\n .cfi_adjust_cfa_offset 8\n mov $128,%esi\n call pointed\n add $8,%rsp\n .cfi_adjust_cfa_offset -8\n ret\n"
    ".cfi_endproc\n.size near_path,.-near_path\n"
    ".globl far_path\n.type far_path,@function\nfar_path:\n.cfi_startproc\n"
    " sub $72,%rsp\n .cfi_adjust_cfa_offset 72\n mov $64,%esi\n call pointed\n add $72,%rsp\n .cfi_adjust_cfa_offset -72\n ret\n"
    ".cfi_endproc\n.size far_path,.-far_path\n"
    ".globl shallow\n.type shallow,@function\nshallow:\n.cfi_startproc\n"
    " sub $8,%rsp\n .cfi_adjust_cfa_offset 8\n mov %rdi,asked(%rip)\n call malloc@PLT\n" NOTE
    " add $8,%rsp\n .cfi_adjust_cfa_offset -8\n ret\n.cfi_endproc\n.size shallow,.-shallow\n"
    ".type pointed,@function\npointed:\n.cfi_startproc\n"
    " push %rbp\n .cfi_def_cfa_offset 16\n .cfi_offset rbp,-16\n mov %rsp,%rbp\n .cfi_def_cfa_register rbp\n"
    " sub %rsi,%rsp\n call leaf\n leave\n .cfi_def_cfa rsp,8\n ret\n.cfi_endproc\n.size pointed,.-pointed\n"
    ".type leaf,@function\nleaf:\n.cfi_startproc\n"
    " push %rbp\n .cfi_def_cfa_offset 16\n .cfi_offset rbp,-16\n xor %ebp,%ebp\n mov %rdi,asked(%rip)\n call malloc@PLT\n" NOTE
    " pop %rbp\n .cfi_def_cfa_offset 8\n .cfi_restore rbp\n ret\n.cfi_endproc\n.size leaf,.-leaf\n");

int main(void) {
  static void (*const order[])(uint64_t) = {near_path, shallow, far_path, shallow, near_path, shallow, far_path, far_path, near_path, near_path};
  uint64_t n = sizeof order / sizeof *order;
  for (uint64_t i = 0; i < 400 * n; i++) {
    if (order[i % n] == shallow) shallow(777);
    else (i < 200 * n ? under_large : under_larger)(order[i % n], 1000 + i % n);
  }
  return o_end(0);
}
