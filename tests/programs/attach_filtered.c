// A program whose system call filter forbids what mapping a library needs, memfd_create, or what the kernel's return probes make it do.
//   attach_filtered errno|kill|trampolines
// Says "ready", allocates at each line "work", ends at "end".
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "errno";
  unsigned denied = !strcmp(how, "errno") ? SECCOMP_RET_ERRNO | EPERM : SECCOMP_RET_KILL_PROCESS;
  int trampolines = !strcmp(how, "trampolines");
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, trampolines ? 335 : SYS_memfd_create, 1, 0), // uretprobe
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, trampolines ? 336 : SYS_memfd_create, 0, 1), // uprobe
      BPF_STMT(BPF_RET | BPF_K, denied),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog filter = {sizeof code / sizeof *code, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) return 1;
  char line[64];
  size_t n = 0;
  if (write(1, "ready\n", 6) != 6) return 2;
  while (read(0, line + n, 1) == 1) {
    if (line[n] != '\n') {
      if (++n == sizeof line) return 3;
      continue;
    }
    line[n] = 0;
    n = 0;
    if (!strcmp(line, "end")) return 0;
    for (size_t i = 1; i < 1000; i++) {
      char *p = malloc(i);
      memset(p, 1, i);
      free(p);
    }
    if (write(1, "done work\n", 10) != 10) return 4;
  }
  return 5;
}
