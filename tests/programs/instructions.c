// Counts instructions: how many of the library's a malloc and its free take once all is warm, by single steps as a debugger takes them.
// instructions LIBRARY CAPTURE MODE: begins itself anew with the library preloaded, whose work is one of those in paths.h. Prints
// how many pairs were watched, and how many instructions of them lay in the library.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <stddef.h>

#define WARM 6000
#define WATCHED 60
static int done;

// Tells whoever watches that it begins, and that it is over.
static inline void pass(void) {
  if (done == WARM || done == WARM + WATCHED) __asm__ volatile("int3");
  done++;
}

#define BEFORE_EACH pass
#include "paths.h"

static int work(const char *what) {
  paths(what, WARM + WATCHED + 1);
  return done == WARM + WATCHED + 1 ? 0 : 91;
}

// Waits until it has come to the next of its marks; what else stops it is passed on.
static int comes_to_its_mark(pid_t pid) {
  int status, signal = 0;
  while (!ptrace(PTRACE_CONT, pid, 0, (long)signal) && waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
    if (WSTOPSIG(status) == SIGTRAP) return 1;
    signal = WSTOPSIG(status);
  }
  return 0;
}

static void where_is(pid_t pid, unsigned long *low, unsigned long *high) {
  char line[512];
  snprintf(line, sizeof line, "/proc/%d/maps", pid);
  FILE *maps = fopen(line, "r");
  *low = ~0ul, *high = 0;
  while (maps && fgets(line, sizeof line, maps)) {
    unsigned long from, to;
    if (!strstr(line, "libhound.so") || sscanf(line, "%lx-%lx", &from, &to) != 2) continue;
    if (from < *low) *low = from;
    if (to > *high) *high = to;
  }
  if (maps) fclose(maps);
}

int main(int argc, char **argv) {
  if (argc == 3 && !strcmp(argv[1], "work")) return work(argv[2]);
  if (argc != 4) return 90;
  pid_t pid = fork();
  if (!pid) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    setenv("LD_PRELOAD", argv[1], 1);
    setenv("HOUND_OUTPUT", argv[2], 1);
    setenv("HOUND_GRAB_BACKTRACES_ON_FREE", "0", 1);
    execl("/proc/self/exe", "instructions", "work", argv[3], NULL);
    _exit(92);
  }
  int status;
  if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status) || ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_EXITKILL)) return 93;
  if (!comes_to_its_mark(pid)) return 94;
  unsigned long low, high, inside = 0;
  where_is(pid, &low, &high);
  for (;;) {
    if (ptrace(PTRACE_SINGLESTEP, pid, 0, 0) || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) return 95;
    unsigned long at = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), 0);
    if (at >= low && at < high) inside++;
    else if ((ptrace(PTRACE_PEEKTEXT, pid, at - 1, 0) & 0xff) == 0xcc) break;
  }
  if (ptrace(PTRACE_CONT, pid, 0, 0) || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status)) return 96;
  printf("%d %lu\n", WATCHED, inside);
  return 0;
}
