// Stops the main thread of a process and lets it go, as a careless tool does: calls that the kernel does not restart end with EINTR.
//   attach_careless PID
// With a second argument "hold" it says "holding", and holds on until its standard input ends (or until it is killed).
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  pid_t pid = argc > 1 ? atoi(argv[1]) : 0;
  int status;
  if (pid <= 0 || ptrace(PTRACE_SEIZE, pid, 0, 0)) return 1;
  if (argc > 2) {
    dprintf(1, "holding\n");
    for (;;) pause();
  }
  if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) || waitpid(pid, &status, __WALL) != pid) return 2;
  return ptrace(PTRACE_DETACH, pid, 0, 0) ? 3 : 0;
}
