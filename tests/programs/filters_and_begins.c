// Puts itself behind a filter that kills on socket and connect, then forks a child that allocates, and becomes another program.
// With `fails-` before how it is set, the filter is none that the kernel takes.
// filters_and_begins [fails-]prctl|[fails-]syscall PROGRAM ARGUMENTS
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define KILL(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

int main(int argc, char **argv) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      KILL(SYS_socket),
      KILL(SYS_connect),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  int fails = argc > 1 && !strncmp(argv[1], "fails-", 6);
  struct sock_fprog prog = {fails ? 0 : sizeof code / sizeof *code, code};
  if (argc < 3 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return 90;
  int set = strcmp(argv[1] + 6 * fails, "prctl") ? (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog);
  if (set != -fails || (fails && errno != EINVAL)) return 91;
  pid_t child = fork();
  if (!child) {
    for (int i = 0; i < 100; i++) *(volatile char *)malloc(100) = 1;
    _exit(5);
  }
  int status;
  if (waitpid(child, &status, 0) != child || status != 5 << 8) return 92;
  execv(argv[2], argv + 2);
  return 93;
}
