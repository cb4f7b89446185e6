// Leaves through exec, or has a child do so. Argument: "exec" (this image is replaced, leaking), "vfork" (a vfork child
// execs), "spawn" (posix_spawn), "script" (exec of nothing: fails, and the program goes on).
#include "oracle.h"
#include <spawn.h>

extern char **environ;

int main(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "exec";
  void *leak = o_malloc(5000);
  memset(leak, 1, 5000);
  char *next[] = {(char *)"sh", (char *)"-c", (char *)"echo next; env | grep -E 'LD_PRELOAD|HOUND' ; exit 23", NULL};
  if (!strcmp(how, "exec")) {
    execv("/bin/sh", next);
    o_fail("execv", __LINE__);
  }
  int status = 0;
  pid_t pid = -1;
  if (!strcmp(how, "vfork")) {
    pid = vfork();
    if (pid == 0) { execv("/bin/sh", next); _exit(98); }
  } else if (!strcmp(how, "spawn")) {
    O_CHECK(!posix_spawn(&pid, "/bin/sh", NULL, NULL, next, environ));
  } else {
    O_CHECK(execv("/nonexistent/program", next) == -1 && errno == ENOENT);
  }
  void *after = o_malloc(600);
  o_free(after);
  if (pid > 0) {
    O_CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 23);
    o_free(leak);
  }
  errno = 0;
  return o_end(WEXITSTATUS(status));
}
