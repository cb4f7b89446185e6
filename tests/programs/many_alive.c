// Holds more blocks at once than a table of sampled blocks has places for, then frees them all. Every block is large enough to be sampled at
// an interval of one byte. Tells in its facts how many there were.
#define O_CAP 64
#include "oracle.h"

#define BLOCKS 400000

static void *block[BLOCKS];

__attribute__((noinline)) static void fill(void) {
  for (size_t i = 0; i < BLOCKS; i++) {
    block[i] = malloc(57);
    O_CHECK(block[i]);
  }
}

int main(void) {
  o_free(o_malloc(100));
  fill();
  for (size_t i = 0; i < BLOCKS; i++) free(block[i]);
  o_fact(0, BLOCKS);
  return o_end(0);
}
