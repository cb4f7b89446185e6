// Locks itself into an empty directory (argument) and drops to nobody: no /proc, no libraries, no way to open anything.
#include "oracle.h"

int main(int argc, char **argv) {
  O_CHECK(argc == 2);
  void *p = o_malloc(100);
  O_CHECK(!chroot(argv[1]) && !chdir("/"));
  O_CHECK(!setgid(65534) && !setuid(65534));
  O_CHECK(access("/proc", F_OK) == -1);
  for (int i = 0; i < 5000; i++) { void *q = o_malloc(64 + (size_t)i % 64); o_free(q); }
  o_free(p);
  p = o_malloc(500);
  errno = 0;
  return o_end(13);
}
