// As compilers at run time do: a thread takes back a function's frames, and puts another function, with a frame of another size, where it
// was. It is called from two functions in turn, so that slots and return addresses are the same and only what is older differs: both
// times a block is allocated, whose size says from which.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

extern void __register_frame(void *), __deregister_frame(void *);

enum { LENGTH = 4096, TIMES = 200, SIZES = 20000 };
static unsigned char *code;
static unsigned char tables[2][128] __attribute__((aligned(8)));
static volatile int wanted, made = -1, over;
static volatile size_t size;

static unsigned char *put(unsigned char *at, const void *bytes, size_t count) { return (unsigned char *)memcpy(at, bytes, count) + count; }

// A CIE (CFA = rsp + 8, the return address there) and an FDE: behind `sub rsp, frame` (7 bytes) CFA = rsp + 8 + frame.
static void describe(unsigned char *table, int frame) {
  static const unsigned char cie[] = {0, 0, 0, 0, 1, 'z', 'R', 0, 1, 0x78, 16, 1, 0, 0x0c, 7, 8, 0x90, 1, 0, 0};
  uint32_t cie_length = sizeof cie, fde_length = 28, back = sizeof cie + 8, end = 0;
  uint64_t start = (uint64_t)code, length = 64;
  unsigned char rules[] = {0, 0x40 | 7, 0x0e, (unsigned char)(frame + 8), 0, 0, 0, 0};
  unsigned char *at = put(table, &cie_length, 4);
  at = put(at, cie, sizeof cie);
  at = put(at, &fde_length, 4);
  at = put(at, &back, 4);
  at = put(at, &start, 8);
  at = put(at, &length, 8);
  at = put(at, rules, sizeof rules);
  put(at, &end, 4);
}

static void *make(void *nothing) {
  int now = -1;
  while (!over) {
    int next = wanted;
    if (next == made) continue;
    if (now >= 0) __deregister_frame(tables[now]);
    if (code) munmap(code, LENGTH);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (code ? MAP_FIXED : 0);
    code = mmap(code, LENGTH, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0);
    if (code == MAP_FAILED) abort();
    int frame = next ? 88 : 24;
    unsigned char text[] = {0x48, 0x81, 0xec, (unsigned char)frame, 0, 0, 0, 0xff, 0xd7, 0x48, 0x81, 0xc4, (unsigned char)frame, 0, 0, 0, 0xc3};
    put(code, text, sizeof text); // sub rsp, frame; call rdi; add rsp, frame; ret
    describe(tables[next], frame);
    __register_frame(tables[next]);
    now = next;
    __sync_synchronize();
    made = next;
  }
  return nothing;
}

__attribute__((noipa)) static void allocates(void) {
  void *p = malloc(size);
  __asm__ volatile("" : : "r"(p) : "memory");
  free(p);
}

void first(void (*leaf)(void), void *through), second(void (*leaf)(void), void *through);
#define CALLER(name, frame)                                                                                                  \
  __asm__(".text\n.globl " #name "\n.type " #name ",@function\n" #name ":\n.cfi_startproc\nsub $" #frame                     \
          ",%rsp\n.cfi_adjust_cfa_offset " #frame "\ncall *%rsi\nadd $" #frame ",%rsp\n.cfi_adjust_cfa_offset -" #frame     \
          "\nret\n.cfi_endproc\n.size " #name ",.-" #name "\n")
CALLER(first, 72);
CALLER(second, 8);

int main(void) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, make, NULL)) return 90;
  for (int i = 0; i < TIMES; i++) {
    wanted = i & 1;
    while (made != wanted) {}
    size = SIZES * (1 + (size_t)wanted);
    if (wanted) second(allocates, code);
    else first(allocates, code);
  }
  over = 1;
  if (pthread_join(thread, NULL)) return 91;
  puts("ok");
  return 0;
}
