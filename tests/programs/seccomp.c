// Installs a filter after start that kills on every system call but those of glibc's malloc and of this program: a
// library that makes any other call later is found out. Two threads allocate, one of them long-lived.
#define O_NO_HASH
#include "oracle.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static volatile int go, done;
static void churn(size_t base) {
  void *held[64] = {0};
  for (int i = 0; i < 5000; i++) {
    o_free(held[i % 64]);
    held[i % 64] = o_malloc(base + (size_t)i * 13 % 300);
  }
  void *big = o_malloc(8 << 20); // by mmap
  big = o_realloc(big, 16 << 20); // by mremap
  o_free(big);
  for (int i = 0; i < 64; i++) o_free(held[i]);
}

static void *other(void *arg) {
  (void)arg;
  void *p = o_malloc(10);
  go = 1;
  while (go != 2) sched_yield();
  o_free(p);
  churn(1000);
  done = 1;
  return NULL;
}

int main(void) {
  pthread_t t;
  O_CHECK(!pthread_create(&t, NULL, other, NULL));
  while (!go) sched_yield();
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      // malloc's own
      ALLOW(SYS_brk), ALLOW(SYS_mmap), ALLOW(SYS_munmap), ALLOW(SYS_mremap), ALLOW(SYS_madvise), ALLOW(SYS_mprotect), ALLOW(SYS_futex),
      // the program's: waiting, printing its end, leaving; a thread's end
      ALLOW(SYS_sched_yield), ALLOW(SYS_write), ALLOW(SYS_exit), ALLOW(SYS_exit_group), ALLOW(SYS_rt_sigprocmask), ALLOW(SYS_gettid),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  struct sock_fprog prog = {sizeof code / sizeof *code, code};
  O_CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
  O_CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog));
  go = 2;
  churn(100);
  while (!done) sched_yield();
  pthread_join(t, NULL);
  o_fact(0, 1);
  o_summary();
  o_flush();
  return 9;
}
