// Allocates, forbids itself the time stamp counter, and allocates on.
// forbids_the_clock tsc|syscall|strict|in-a-fork|in-a-vfork
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/seccomp.h>

enum { BLOCKS = 1000 };
static void *blocks[BLOCKS];

static void allocate(void) {
  for (int i = 0; i < BLOCKS; i++) {
    free(blocks[i]);
    blocks[i] = realloc(malloc(100), 90);
    if (!blocks[i]) _exit(90);
  }
}

static void *in_a_thread(void *nothing) {
  allocate();
  return nothing;
}

static void all_else(void) {
  char *memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) _exit(91);
  memory = mremap(memory, 8192, 4096, MREMAP_MAYMOVE);
  if (memory == MAP_FAILED || munmap(memory, 4096)) _exit(92);
  free(malloc(10 << 20));
  pthread_t thread;
  if (pthread_create(&thread, NULL, in_a_thread, NULL) || pthread_join(thread, NULL)) _exit(93);
}

static void forbid_in_a_child(const char *how) {
  pid_t child = strcmp(how, "in-a-fork") ? vfork() : fork();
  if (!child) {
    if (prctl(PR_SET_TSC, PR_TSC_SIGSEGV)) _exit(98);
    if (!strcmp(how, "in-a-fork")) {
      allocate();
      all_else();
    }
    _exit(5);
  }
  int status;
  if (waitpid(child, &status, 0) != child || status != 5 << 8) _exit(99);
}

int main(int argc, char **argv) {
  if (argc != 2) return 94;
  allocate();
  if (!strncmp(argv[1], "in-a-", 5)) {
    forbid_in_a_child(argv[1]);
    allocate();
    return write(1, "done\n", 5) != 5;
  }
  if (!strcmp(argv[1], "strict")) {
    // What the heap has is enough for what follows.
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)) return 95;
    allocate();
    syscall(SYS_write, 1, "done\n", 5);
    syscall(SYS_exit, 0);
  }
  long set = strcmp(argv[1], "tsc") ? syscall(SYS_prctl, PR_SET_TSC, PR_TSC_SIGSEGV) : prctl(PR_SET_TSC, PR_TSC_SIGSEGV);
  if (set) return 96;
  allocate();
  all_else();
  pid_t child = fork();
  if (!child) {
    allocate();
    all_else();
    _exit(5);
  }
  int status;
  if (waitpid(child, &status, 0) != child || status != 5 << 8) return 97;
  return write(1, "done\n", 5) != 5;
}
