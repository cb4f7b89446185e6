// Has 64 MiB more than before for a moment, says "ready", and waits for the end of its input.
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int main(void) {
  const size_t size = 64 << 20;
  char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return 2;
  memset(area, 1, size);
  if (munmap(area, size)) return 3;
  puts("ready");
  fflush(stdout);
  while (getchar() != EOF) {}
  return 0;
}
