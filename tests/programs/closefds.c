// Closes every descriptor above the standard three, as daemons do, and goes on allocating: its next open must get the
// lowest number, and the recording must not need any descriptor.
#include "oracle.h"

int main(void) {
  void *before = o_malloc(100);
  closefrom(3);
  for (int i = 0; i < 20000; i++) { void *p = o_malloc(200); o_free(p); }
  int fd = open("/dev/null", O_RDONLY);
  O_CHECK(fd == 3);
  close(fd);
  o_free(before);
  before = o_malloc(300);
  return o_end(0);
}
