// Programs that would notice a stranger among their children. Argument: "wait" (waits for any child: must be told that
// there is none), "reaper" (a subreaper, to whom orphans would come), "exec" (becomes
// a subreaper, then loads PRELOAD_LATER by executing itself: the library starts inside a subreaper), "init" (to be run as PID 1 of a namespace).
#include "oracle.h"
#include <time.h>

static void work(void) {
  for (int i = 0; i < 1000; i++) { void *p = o_malloc((size_t)i + 1); if (i % 10) o_free(p); }
}

// Any child at all, now or within a while of allocating, is a stranger. A process that adopts orphans may be left with a
// clone child that no ordinary wait shows.
static void no_strangers(int clones) {
  for (int i = 0; i < 5; i++) {
    work();
    errno = 0;
    O_CHECK(waitpid(-1, NULL, WNOHANG | clones) == -1 && errno == ECHILD);
  }
  O_CHECK(wait(NULL) == -1 && errno == ECHILD);
}

int main(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "wait";
  if (!strcmp(how, "exec")) {
    O_CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1));
    if (getenv("PRELOAD_LATER")) setenv("LD_PRELOAD", getenv("PRELOAD_LATER"), 1);
    execl("/proc/self/exe", argv[0], "reaper", NULL);
    o_fail("execl", __LINE__);
  }
  if (!strcmp(how, "reaper")) O_CHECK(!prctl(PR_SET_CHILD_SUBREAPER, 1));
  if (!strcmp(how, "init")) O_CHECK(getpid() == 1);
  no_strangers(strcmp(how, "wait") ? 0 : __WALL);
  if (strcmp(how, "wait")) {
    // An orphan of ours comes back to us, and is the only one that does.
    pid_t pid = fork();
    if (pid == 0) { if (fork() == 0) _exit(6); _exit(5); }
    int seen = 0, status;
    pid_t got;
    while ((got = wait(&status)) > 0) { seen++; O_CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 5 || WEXITSTATUS(status) == 6)); }
    O_CHECK(errno == ECHILD && seen == 2);
  }
  no_strangers(strcmp(how, "wait") ? 0 : __WALL);
  errno = 0;
  return o_end(11);
}
