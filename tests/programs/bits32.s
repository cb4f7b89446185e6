# The smallest 32-bit program: exits with 32. Assembled with cc -m32 -nostdlib -static, which needs no 32-bit libraries.
.globl _start
_start:
  movl $1, %eax
  movl $32, %ebx
  int $0x80
.section .note.GNU-stack,"",@progbits
