// A library with much code, thread-local storage of its own, and a function that allocates.
#include <stdlib.h>

static __thread int own[1024];
int *local(void) { return own; }

void *allocate(size_t n) { return malloc(n); }

extern char code[];
__asm__(".text\n.globl code\n.type code, @function\ncode:\n.cfi_startproc\n.fill 1 << 20, 1, 0x90\nret\n.cfi_endproc\n.size code, . - code\n");
