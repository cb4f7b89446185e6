// Calls libc's prctl and syscall before any initialiser has run, and notes a block afterwards.
#include "oracle.h"
#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static int dumpable, bad, bad_errno;
static long tid, none, none_errno;

static void early(void) {
  dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
  tid = syscall(SYS_gettid);
  errno = 0;
  bad = prctl(-1, 0, 0, 0, 0);
  bad_errno = errno;
  errno = 0;
  none = syscall(-1L);
  none_errno = errno;
}
__attribute__((section(".preinit_array"), used)) static void (*const first)(void) = early;

int main(void) {
  O_CHECK(dumpable == 1 && tid == getpid());
  O_CHECK(bad == -1 && bad_errno == EINVAL);
  O_CHECK(none == -1 && none_errno == ENOSYS);
  errno = 0;
  O_CHECK(syscall(-1L) == -1 && errno == ENOSYS);
  O_CHECK(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 1);
  o_free(o_malloc(100));
  o_summary();
  return 0;
}
