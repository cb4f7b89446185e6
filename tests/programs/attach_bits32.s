# A 32-bit process that says "ready" and sleeps for a minute.
.globl _start
_start:
    mov $4, %eax        # write
    mov $1, %ebx
    mov $text, %ecx
    mov $6, %edx
    int $0x80
    mov $162, %eax      # nanosleep
    mov $time, %ebx
    xor %ecx, %ecx
    int $0x80
    mov $1, %eax        # exit
    xor %ebx, %ebx
    int $0x80
.data
text: .ascii "ready\n"
time: .long 60, 0
.section .note.GNU-stack,"",@progbits
