// Becomes a daemon: forks, leads a new session, and the parent leaves with its own status. The recording is the parent's,
// and must end with it, though the child lives on; the child says so through the file named by the first argument.
#include "oracle.h"

int main(int argc, char **argv) {
  O_CHECK(argc == 2);
  void *kept = o_malloc(123);
  pid_t pid = fork();
  O_CHECK(pid >= 0);
  if (pid) {
    void *parent_only = o_malloc(456);
    o_free(parent_only);
    o_summary();
    o_flush();
    return 17;
  }
  o_stop();
  O_CHECK(setsid() > 0);
  for (int i = 0; i < 1000; i++) { void *p = malloc(99999); memset(p, 1, 99999); free(p); }
  free(kept);
  closefrom(0);
  int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
  dprintf(fd, "daemon done\n");
  return 0;
}
