// Writes into blocks, releases them and looks whether what malloc gives next is zero: prints "zero" or "dirty".
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
  int dirty = 0;
  for (int i = 0; i < 100; i++) {
    unsigned char *p = malloc(1234);
    for (int at = 0; at < 1234; at++) dirty |= p[at];
    memset(p, 0xa5, 1234);
    __asm__ volatile("" : : "r"(p) : "memory");
    free(p);
  }
  puts(dirty ? "dirty" : "zero");
  return 0;
}
