// Workers that watch the machine's state: all registers while they spin, the callee-saved ones across allocator calls, the red zone, a
// large region's checksum, the control words.
#pragma once
#include "attach_torture.h"

namespace torture {

struct Registers {
  uint64_t general[14]; // rax rbx rdx rsi rdi rbp r8-r15
  alignas(64) uint8_t vector[32][64];
  uint64_t masks[8];
  uint64_t red[16];
  uint32_t mxcsr, pad;
  uint16_t x87, pad2[3];
};

// Loads everything, counts down, stores everything. level: 0 SSE, 1 AVX, 2 AVX-512.
extern "C" void torture_spin(const Registers *in, Registers *out, uint64_t turns, int level);
// Calls function(argument) with the callee-saved registers filled from `in`, and stores them to `out` afterwards.
extern "C" void *torture_call(void *function, size_t argument, const uint64_t in[6], uint64_t out[6]);

static_assert(offsetof(Registers, vector) == 128 && offsetof(Registers, masks) == 2176 && offsetof(Registers, red) == 2240 &&
                  offsetof(Registers, mxcsr) == 2368 && offsetof(Registers, x87) == 2376,
              "the assembly below knows these");

asm(R"(
.text
.globl torture_spin
.type torture_spin, @function
torture_spin:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  push %rsi
  push %rcx
  ldmxcsr 2368(%rdi)
  fldcw 2376(%rdi)
  cmp $1, %ecx
  je 1f
  jb 0f
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
  vmovdqu64 128+64*\n(%rdi), %zmm\n
.endr
.irp n, 1,2,3,4,5,6,7
  kmovw 2176+8*\n(%rdi), %k\n
.endr
  jmp 2f
1:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  vmovdqu 128+64*\n(%rdi), %ymm\n
.endr
  jmp 2f
0:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  movdqu 128+64*\n(%rdi), %xmm\n
.endr
2:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  mov 2240+8*\n(%rdi), %rax
  mov %rax, -128+8*\n(%rsp)
.endr
  mov %rdx, %rcx
  mov 0(%rdi), %rax
  mov 8(%rdi), %rbx
  mov 16(%rdi), %rdx
  mov 24(%rdi), %rsi
  mov 40(%rdi), %rbp
  mov 48(%rdi), %r8
  mov 56(%rdi), %r9
  mov 64(%rdi), %r10
  mov 72(%rdi), %r11
  mov 80(%rdi), %r12
  mov 88(%rdi), %r13
  mov 96(%rdi), %r14
  mov 104(%rdi), %r15
  mov 32(%rdi), %rdi
3:
  dec %rcx
  jnz 3b
  mov 8(%rsp), %rcx
  mov %rax, 0(%rcx)
  mov %rbx, 8(%rcx)
  mov %rdx, 16(%rcx)
  mov %rsi, 24(%rcx)
  mov %rdi, 32(%rcx)
  mov %rbp, 40(%rcx)
  mov %r8, 48(%rcx)
  mov %r9, 56(%rcx)
  mov %r10, 64(%rcx)
  mov %r11, 72(%rcx)
  mov %r12, 80(%rcx)
  mov %r13, 88(%rcx)
  mov %r14, 96(%rcx)
  mov %r15, 104(%rcx)
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  mov -128+8*\n(%rsp), %rax
  mov %rax, 2240+8*\n(%rcx)
.endr
  stmxcsr 2368(%rcx)
  fnstcw 2376(%rcx)
  cmpl $1, (%rsp)
  je 1f
  jb 0f
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
  vmovdqu64 %zmm\n, 128+64*\n(%rcx)
.endr
.irp n, 1,2,3,4,5,6,7
  kmovw %k\n, 2176+8*\n(%rcx)
.endr
  vzeroupper
  jmp 2f
1:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  vmovdqu %ymm\n, 128+64*\n(%rcx)
.endr
  vzeroupper
  jmp 2f
0:
.irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
  movdqu %xmm\n, 128+64*\n(%rcx)
.endr
2:
  pop %rcx
  pop %rsi
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.size torture_spin, .-torture_spin

.globl torture_call
.type torture_call, @function
torture_call:
  push %rbx
  push %rbp
  push %r12
  push %r13
  push %r14
  push %r15
  push %rcx
  mov %rdi, %rax
  mov %rsi, %rdi
  mov 0(%rdx), %rbx
  mov 8(%rdx), %rbp
  mov 16(%rdx), %r12
  mov 24(%rdx), %r13
  mov 32(%rdx), %r14
  mov 40(%rdx), %r15
  call *%rax
  pop %rcx
  mov %rbx, 0(%rcx)
  mov %rbp, 8(%rcx)
  mov %r12, 16(%rcx)
  mov %r13, 24(%rcx)
  mov %r14, 32(%rcx)
  mov %r15, 40(%rcx)
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbp
  pop %rbx
  ret
.size torture_call, .-torture_call
)");

inline int vector_level() { return __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx") ? 1 : 0; }

inline void step_registers(Worker &w) {
  static thread_local Registers in, out;
  int level = vector_level() ? (int)w.random.below((uint64_t)vector_level() + 1) : 0;
  int vectors = level == 2 ? 32 : 16, width = level == 2 ? 64 : level == 1 ? 32 : 16;
  uint32_t mxcsr;
  uint16_t x87;
  asm volatile("stmxcsr %0" : "=m"(mxcsr));
  asm volatile("fnstcw %0" : "=m"(x87));
  for (size_t i = 0; i < sizeof in / 8; i++) ((uint64_t *)&in)[i] = w.random.next();
  for (int i = 0; i < 8; i++) in.masks[i] &= 0xffff;
  in.mxcsr = 0x1f80 | (uint32_t)w.random.below(4) << 13; // another rounding
  in.x87 = (uint16_t)(0x037f | w.random.below(4) << 10);
  torture_spin(&in, &out, 200000 + w.random.below(2000000), level);
  asm volatile("ldmxcsr %0" : : "m"(mxcsr));
  asm volatile("fldcw %0" : : "m"(x87));
  for (int i = 0; i < 14; i++)
    if (in.general[i] != out.general[i]) fail("general register %d was %lx, is %lx", i, in.general[i], out.general[i]);
  for (int i = 0; i < vectors; i++)
    if (memcmp(in.vector[i], out.vector[i], (size_t)width)) fail("vector register %d (level %d) has changed", i, level);
  for (int i = 1; level == 2 && i < 8; i++)
    if (in.masks[i] != out.masks[i]) fail("mask register %d was %lx, is %lx", i, in.masks[i], out.masks[i]);
  for (int i = 0; i < 16; i++)
    if (in.red[i] != out.red[i]) fail("red zone word %d was %lx, is %lx", i, in.red[i], out.red[i]);
  if (in.mxcsr != (out.mxcsr & ~0x3fu)) fail("mxcsr was %x, is %x", in.mxcsr, out.mxcsr);
  if (in.x87 != out.x87) fail("x87 control was %x, is %x", in.x87, out.x87);
  count.register_spins.fetch_add(1, std::memory_order_relaxed);
}

inline void step_calls(Worker &w) {
  uint64_t in[6], out[6];
  for (int i = 0; i < 500; i++) {
    for (uint64_t &word : in) word = w.random.next();
    void *p = torture_call((void *)malloc, 1 + w.random.below(2000), in, out);
    if (memcmp(in, out, sizeof in)) fail("malloc changed callee-saved registers");
    if (!p) fail("malloc failed");
    torture_call((void *)free, (size_t)p, in, out);
    if (memcmp(in, out, sizeof in)) fail("free changed callee-saved registers");
  }
  count.register_calls.fetch_add(1000, std::memory_order_relaxed);
}

// Memory that nobody else may touch.
inline uint64_t pattern_of(size_t i) { return (i + 77) * 0x9e3779b97f4a7c15ull; }
inline uint64_t region[1 << 20];
inline void step_region(Worker &w) {
  static bool filled = false;
  if (!filled) {
    for (size_t i = 0; i < sizeof region / 8; i++) region[i] = pattern_of(i);
    filled = true;
  }
  for (size_t i = 0; i < sizeof region / 8; i++)
    if (region[i] != pattern_of(i)) return fail("word %zu of the program's own data has changed to %lx", i, region[i]);
  (void)w;
}

} // namespace torture
