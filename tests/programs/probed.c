// A program for the kernel's probes: its own functions allocate, so that nothing else of the process is counted, and begin with a `push`,
// which the kernel emulates. It does what lines on its standard input say and prints what it did: "M address size" made, "F address"
// released, "R old new size" resized, with the thread's number before it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TRACED(name, inner)                                                                                                                \
  __asm__(".text\n.globl " name "\n.type " name ",@function\n" name ":\n.cfi_startproc\npush %rbp\n.cfi_adjust_cfa_offset 8\n"              \
          "call " inner "@PLT\npop %rbp\n.cfi_adjust_cfa_offset -8\nret\n.cfi_endproc\n.size " name ", .-" name "\n")
TRACED("traced_malloc", "malloc");
TRACED("traced_calloc", "calloc");
TRACED("traced_realloc", "realloc");
TRACED("traced_posix_memalign", "posix_memalign");
TRACED("traced_resize", "resize");
TRACED("traced_jump", "jump");
// The first instruction is none that the kernel emulates; the probe's place is behind the first push.
__asm__(".text\n.globl traced_free\n.type traced_free,@function\ntraced_free:\ntest %rdi,%rdi\nje 1f\npush %rbx\n"
        ".globl traced_free_probe\ntraced_free_probe:\npush %rbp\nsub $8,%rsp\ncall free@PLT\nadd $8,%rsp\npop %rbp\npop %rbx\n1:ret\n"
        ".size traced_free, .-traced_free\n");
void *traced_malloc(size_t), *traced_calloc(size_t, size_t), *traced_realloc(void *, size_t);
int traced_posix_memalign(void **, size_t, size_t);
size_t traced_resize(void *, size_t, size_t, int);
void *traced_jump(size_t);
void traced_free(void *);

// As jemalloc's xallocx: the block stays, its size is returned; it can be made no larger than 4096.
size_t resize(void *block, size_t size, size_t extra, int flags) {
  (void)block, (void)extra, (void)flags;
  return size < 4096 ? size : 4096;
}
static __thread jmp_buf out;
void *jump(size_t size) {
  (void)size;
  longjmp(out, 1);
}

static pthread_mutex_t printing = PTHREAD_MUTEX_INITIALIZER;
struct made {
  void *address;
  size_t size;
};
static int threads, calls;
static void *work(void *argument) {
  struct made *made = calloc(calls, sizeof *made);
  unsigned seed = (unsigned)(uintptr_t)argument + 1;
  for (int i = 0; i < calls; i++) {
    made[i].size = 1 + (seed = seed * 1664525 + 1013904223) % 5000;
    made[i].address = i % 3 ? traced_malloc(made[i].size) : traced_calloc(1, made[i].size);
  }
  for (int i = 0; i < calls; i += 2) traced_free(made[i].address);
  pthread_mutex_lock(&printing);
  for (int i = 0; i < calls; i++) printf("%d M %p %zu\n", gettid(), made[i].address, made[i].size);
  for (int i = 0; i < calls; i += 2) printf("%d F %p\n", gettid(), made[i].address);
  pthread_mutex_unlock(&printing);
  free(made);
  return NULL;
}
static void in_threads(void) {
  pthread_t all[64];
  for (int i = 0; i < threads; i++) pthread_create(&all[i], NULL, work, (void *)(uintptr_t)i);
  for (int i = 0; i < threads; i++) pthread_join(all[i], NULL);
}
static void resizing(void) {
  void *a = traced_malloc(100);
  printf("%d M %p 100\n", gettid(), a);
  uintptr_t old = (uintptr_t)a;
  a = traced_realloc(a, 100000);
  printf("%d R %#lx %p 100000\n", gettid(), old, a);
  void *none = traced_realloc(a, PTRDIFF_MAX);
  printf("%d R %p %p %zu\n", gettid(), a, none, (size_t)PTRDIFF_MAX);
  old = (uintptr_t)a;
  none = traced_realloc(a, 0);
  printf("%d R %#lx %p 0\n", gettid(), old, none);
  void *b = traced_realloc(NULL, 77);
  printf("%d M %p 77\n", gettid(), b);
  printf("%d X %p %zu\n", gettid(), b, traced_resize(b, 9000, 0, 0));
  traced_free(b);
  printf("%d F %p\n", gettid(), b);
}
static void aligning(void) {
  void *a = NULL, *untouched = (void *)0x1234;
  int good = traced_posix_memalign(&a, 256, 333), bad = traced_posix_memalign(&untouched, 3, 444);
  printf("%d M %p 333 %d\n%d N 444 %d\n", gettid(), a, good, gettid(), bad);
  traced_free(a);
  printf("%d F %p\n", gettid(), a);
}
// Keeps as much of the stack in use as is asked for, none of it all zeroes.
static void __attribute__((noinline)) deep(size_t stack, int times, size_t size) {
  volatile char frame[1024];
  memset((char *)frame, 0x5A, sizeof frame);
  if (stack > sizeof frame) {
    deep(stack - sizeof frame, times, size);
  } else {
    for (int i = 0; i < times; i++) traced_free(traced_malloc(size));
  }
  frame[0] = 1;
}
static double cpu_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * 1e9 + now.tv_nsec;
}
// Samples at a steady rate: `rate` calls a second for `ms`, in bursts each millisecond.
static void steady(int rate, int ms) {
  volatile char frame[32 << 10];
  memset((char *)frame, 0x5A, sizeof frame);
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (int i = 0; i < ms; i++) {
    for (int j = 0; j < rate / 1000; j++) traced_free(traced_malloc(64));
    next.tv_nsec += 1000000;
    if (next.tv_nsec >= 1000000000) next.tv_nsec -= 1000000000, next.tv_sec++;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
  }
  frame[0] = 1;
}

int main(int argc, char **argv) {
  char line[256];
  setvbuf(stdout, NULL, _IOFBF, 1 << 20);
  printf("ready\n");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    long a = 0, b = 0, c = 0;
    char word[32] = "";
    sscanf(line, "%31s %ld %ld %ld", word, &a, &b, &c);
    if (!strcmp(word, "threads")) threads = a, calls = b, in_threads();
    else if (!strcmp(word, "resizing")) resizing();
    else if (!strcmp(word, "aligning")) aligning();
    else if (!strcmp(word, "deep")) deep(a, b, c);
    else if (!strcmp(word, "steady")) steady(a, b);
    else if (!strcmp(word, "jump")) {
      if (!setjmp(out)) traced_jump(55);
    } else if (!strcmp(word, "pairs")) {
      double start = cpu_ns();
      for (long i = 0; i < a; i++) traced_free(traced_malloc(b));
      printf("pair %.1f ns\n", (cpu_ns() - start) / a);
    } else if (!strcmp(word, "fork")) {
      fflush(stdout);
      pid_t child = fork();
      if (!child) {
        for (int i = 0; i < 100; i++) traced_free(traced_malloc(100));
        _exit(7);
      }
      int status;
      waitpid(child, &status, 0);
      printf("child %d %d\n", child, WEXITSTATUS(status));
    } else if (!strcmp(word, "rename")) {
      prctl(PR_SET_NAME, "renamed");
    } else if (!strcmp(word, "touch")) {
      char *at = mmap(NULL, a, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      madvise(at, a, MADV_NOHUGEPAGE);
      for (long i = 0; i < a / 2; i += 4096) at[i] = 1;
      // The other half is touched by the kernel.
      int zero = open("/dev/zero", 0);
      if (read(zero, at + a / 2, a / 2) != a / 2) return 1;
      close(zero);
      printf("mapped %p %ld\n", at, a);
    } else if (!strcmp(word, "exec")) {
      fflush(stdout);
      execv("/proc/self/exe", argv);
    } else if (!strcmp(word, "end")) {
      break;
    }
    printf("done %s", line);
    fflush(stdout);
  }
  (void)argc;
  return 0;
}
