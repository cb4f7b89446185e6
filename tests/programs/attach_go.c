// What hound sees of a Go program without C code: static, no malloc, and the section in which Go's linker says that it made it.
// Compiled with -nostdlib -static. Says "ready" and waits for the end of its standard input or its own.
__attribute__((section(".go.buildinfo"), used)) static const char made_by_go[] = "\xff Go buildinf:\x08\x02";

static long call(long number, long a, long b, long c) {
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return r;
}

void _start(void) {
  call(1, 1, (long)"ready\n", 6);
  for (;;) call(34, 0, 0, 0);
}
