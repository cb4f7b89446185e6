// A service that begins processes all the time, to attach to, and that checks that none of them is harmed: children that end at once, by the
// dozen; at SIGUSR1 one that stays what it is, at SIGUSR2 one that becomes another program. Ends at SIGTERM, and ends those. Argument:
//   stay      to be such a program
//   filtered  with a seccomp filter that lets everything pass
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(...) do { if (!(__VA_ARGS__)) { fprintf(stderr, "%d: %s failed, errno %d\n", __LINE__, #__VA_ARGS__, errno); _exit(99); } } while (0)
#define KEPT 32

static volatile sig_atomic_t stay, become, over;
static void on_signal(int signal) { *(signal == SIGUSR1 ? &stay : signal == SIGUSR2 ? &become : &over) = 1; }

// Blocks with a pattern in them, which must be as they were when they are released.
static unsigned char *kept[KEPT];
__attribute__((noinline)) static void works(unsigned round) {
  unsigned at = round % KEPT, size = 100 + 37 * at;
  errno = 33;
  if (kept[at]) {
    for (unsigned i = 0; i < size; i++) CHECK(kept[at][i] == (unsigned char)(at + i));
    free(kept[at]);
  }
  kept[at] = malloc(size);
  CHECK(kept[at] && errno == 33);
  for (unsigned i = 0; i < size; i++) kept[at][i] = (unsigned char)(at + i);
}

// What is left of the fork on the part of the stack that is used from here on would look as if the library were still at work.
__attribute__((noinline)) static void clear(void) {
  char used[8192];
  memset(used, 0, sizeof used);
  __asm__ volatile("" ::"r"(used) : "memory");
}

__attribute__((noinline)) static int stays(void) {
  unsigned round = 0;
  while (!over) {
    works(round++);
    usleep(200);
  }
  return 7;
}

static pid_t begin(int becomes, char **argv) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child) return child;
  if (becomes) {
    execl("/proc/self/exe", argv[0], "stay", NULL);
    _exit(98);
  }
  clear();
  _exit(stays());
}

static void filter(void) {
  struct sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog program = {1, all};
  CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

int main(int argc, char **argv) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  for (int i = 0; i < 3; i++) CHECK(!sigaction((int[]){SIGUSR1, SIGUSR2, SIGTERM}[i], &action, NULL));
  setvbuf(stdout, NULL, _IONBF, 0);
  const char *how = argc > 1 ? argv[1] : "";
  if (!strcmp(how, "stay")) return stays();
  if (!strcmp(how, "filtered")) filter();
  pid_t long_ones[16];
  int count = 0;
  printf("ready\n");
  for (unsigned round = 0; !over; round++) {
    works(round);
    for (int i = 0; i < 2; i++) {
      volatile sig_atomic_t *wanted = i ? &become : &stay;
      if (!*wanted || count == 16) continue;
      *wanted = 0;
      long_ones[count] = begin(i, argv);
      printf("%s %d\n", i ? "became" : "stays", (int)long_ones[count++]);
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
      for (unsigned i = 0; i < 40; i++) works(i);
      _exit(5);
    }
    int status;
    while (waitpid(child, &status, 0) < 0) CHECK(errno == EINTR);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
    if (round % 50 == 0) printf("round %u\n", round);
    usleep(2000);
  }
  for (int i = 0; i < count; i++) {
    int status;
    CHECK(!kill(long_ones[i], SIGTERM));
    while (waitpid(long_ones[i], &status, 0) < 0) CHECK(errno == EINTR);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  }
  return 0;
}
