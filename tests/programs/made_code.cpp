// A library, opened by made_code.c, that makes code at run time, tells libgcc its unwind rules, and throws through it.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>

extern "C" void __register_frame(void *);
extern "C" void __deregister_frame(void *);

static void thrower() {
  free(malloc(4321));
  throw 42;
}

// An exception from below the made code is caught above it: only if __register_frame reached the libgcc that unwinds.
extern "C" int throw_through_made_code() {
  // sub $8,%rsp; call *%rdi; add $8,%rsp; ret
  static const unsigned char code[] = {0x48, 0x83, 0xec, 8, 0xff, 0xd7, 0x48, 0x83, 0xc4, 8, 0xc3};
  void *page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return -1;
  memcpy(page, code, sizeof code);
  // CIE (CFA is rsp+8, the return address right below it), FDE (CFA is rsp+16 behind the first instruction), terminator.
  alignas(16) static unsigned char frames[64] = {
      16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1, 0, 0,
      24, 0, 0, 0, 24};
  const uint64_t start = reinterpret_cast<uint64_t>(page), length = sizeof code;
  memcpy(frames + 28, &start, 8);
  memcpy(frames + 36, &length, 8);
  const unsigned char moved[] = {0x44, 0x0e, 16, 0};
  memcpy(frames + 44, moved, sizeof moved);
  int caught = 0;
  __register_frame(frames);
  for (int i = 0; i < 100; i++) {
    try {
      reinterpret_cast<void (*)(void (*)())>(page)(thrower);
    } catch (int value) {
      caught += value == 42;
    }
  }
  __deregister_frame(frames); // aborts if the registration went elsewhere
  munmap(page, 4096);
  return caught;
}
