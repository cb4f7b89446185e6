// Changes its environment while another thread forbids itself things, and begins programs with its own environment and with others:
// what it has in it stays its own.
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static atomic_int over;

static void *changes(void *nothing) {
  char name[32];
  for (int i = 0; !over; i++) {
    snprintf(name, sizeof name, "NAME%d", i % 3000);
    setenv(name, "value", 1);
    if (i % 3000 == 2999)
      for (int k = 0; k < 3000; k++) snprintf(name, sizeof name, "NAME%d", k), unsetenv(name);
  }
  return nothing;
}

static int forbids(void) {
  struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog prog = {1, code};
  pthread_t thread;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || pthread_create(&thread, NULL, changes, NULL)) return 90;
  for (int i = 0; i < 300; i++)
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) return 91;
  over = 1;
  return pthread_join(thread, NULL) ? 92 : 0;
}

static int begins(void) {
  char *words[] = {"true", NULL}, *other[] = {"ONLY=this", NULL}, list[4096];
  unsetenv("ASAN_OPTIONS");
  unsetenv("LD_PRELOAD");
  setenv("MINE", "here", 1);
  for (int i = 0; i < 3; i++) {
    pid_t child = vfork();
    if (!child) {
      execvp("true", words);
      _exit(93);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status) return 94;
    if (posix_spawnp(&child, "true", NULL, NULL, words, other) || waitpid(child, &status, 0) != child || status) return 95;
    execvp("there-is-no-such-program", words);
    snprintf(list, sizeof list, "%s", getenv("MINE") ? getenv("MINE") : "gone");
    if (strcmp(list, "here") || getenv("ONLY")) return 96;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 2) return 97;
  int result = strcmp(argv[1], "forbids") ? begins() : forbids();
  if (!result) puts("kept");
  return result;
}
