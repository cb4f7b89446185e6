// Puts itself behind a filter that kills on socket and connect, then begins shells by system and popen, which say what they are to preload.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define KILL(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

int main(void) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      KILL(SYS_socket),
      KILL(SYS_connect),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog prog = {sizeof code / sizeof *code, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) return 90;
  if (!system(NULL)) return 91;
  int status = system("echo \"system: $LD_PRELOAD\"; exit 3");
  if (status != 3 << 8) return 92;
  FILE *shell = popen("echo \"popen: $LD_PRELOAD\"; exit 4", "r");
  char line[4096];
  if (!shell || !fgets(line, sizeof line, shell) || pclose(shell) != 4 << 8) return 93;
  fputs(line, stdout);
  return 0;
}
