// Begins processes that allocate as it does, and notes what each of them did, for a profiler that records them too. Argument:
//   forks     children and grandchildren by fork, which release blocks that they have from before it; another thread allocates all the while
//   raw       a child by the system call itself, of which libc knows nothing
//   handler   a child that a signal handler forks, which has come in between
//   closes    children that close every descriptor, change their root, give up their rights, or filter their system calls
//   short     two hundred children that make one block and end
//   daemon    a child that outlives it
//   threads   a child that has threads of its own
#define O_NO_HASH
#include "oracle.h"
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <time.h>

#define SITE __attribute__((noinline))

static volatile int stop;

SITE static void *busy(void *arg) {
  (void)arg;
  while (!stop) {
    void *p = o_malloc(80);
    o_free(p);
    usleep(50);
  }
  return NULL;
}

// A process of its own: other thread, other notes.
static void is_child(void) { o_tid = 0; }

static int descriptors(void) {
  int open = 0;
  for (int fd = 0; fd < 1024; fd++) open += fcntl(fd, F_GETFD) >= 0;
  return open;
}

SITE static void works(void **inherited, int count, size_t size) {
  void *keep[50];
  int before = descriptors();
  errno = 77;
  keep[0] = o_malloc(size); // a child's first event: it asks for its ring, and keeps nothing that can be seen
  O_CHECK(errno == 77 && descriptors() == before);
  o_free(keep[0]);
  for (int i = 0; i < count; i++) o_free(inherited[i]);
  for (int i = 0; i < 50; i++) keep[i] = o_malloc(size + (size_t)i);
  for (int i = 0; i < 50; i += 2) { keep[i] = o_realloc(keep[i], 4 * size); }
  for (int i = 0; i < 40; i++) o_free(keep[i]);
}

static void ends_with(pid_t pid, int status) {
  int got;
  O_CHECK(waitpid(pid, &got, 0) == pid && WIFEXITED(got) && WEXITSTATUS(got) == status);
}

SITE static void forks(void) {
  pthread_t t;
  O_CHECK(!pthread_create(&t, NULL, busy, NULL));
  for (int i = 0; i < 4; i++) {
    void *before[10];
    for (int k = 0; k < 10; k++) before[k] = o_malloc(111);
    pid_t child = fork();
    O_CHECK(child >= 0);
    if (!child) {
      is_child();
      works(before, 4, 300);
      pid_t grandchild = fork();
      O_CHECK(grandchild >= 0);
      if (!grandchild) {
        is_child();
        works(before + 4, 3, 500);
        _exit(42);
      }
      ends_with(grandchild, 42);
      works(before + 4, 2, 700);
      _exit(41);
    }
    for (int k = 0; k < 9; k++) o_free(before[k]);
    ends_with(child, 41);
  }
  stop = 1;
  O_CHECK(!pthread_join(t, NULL));
}

SITE static void raw(void) {
  void *before = o_malloc(1000);
  pid_t child = (pid_t)syscall(SYS_fork);
  O_CHECK(child >= 0);
  if (!child) {
    is_child();
    works(&before, 1, 64);
    _exit(40);
  }
  ends_with(child, 40);
  o_free(before);
}

static volatile pid_t forked;
static void on_signal(int sig) {
  (void)sig;
  forked = fork();
  if (!forked) is_child();
}

SITE static void handler(void) {
  signal(SIGUSR1, on_signal);
  void *before = o_malloc(200);
  raise(SIGUSR1);
  works(&before, 1, forked ? 100 : 200);
  if (!forked) _exit(39);
  ends_with(forked, 39);
}

static void filters(void) {
  // Sockets and opened files are refused.
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  O_CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

SITE static void closes(void) {
  for (int i = 0; i < 3; i++) {
    void *before = o_malloc(70);
    pid_t child = fork();
    O_CHECK(child >= 0);
    if (!child) {
      is_child();
      for (int fd = 0; fd < 1024; fd++) close(fd);
      if (i >= 1) O_CHECK(!chroot("/proc") && !chdir("/"));
      if (i >= 2) O_CHECK(!setgroups(0, NULL) && !setgid(65534) && !setuid(65534));
      works(&before, 1, 30);
      _exit(38);
    }
    ends_with(child, 38);
    o_free(before);
  }
  // This one cannot reach anybody: it runs on as it would, and its notes are its own.
  pid_t child = fork();
  O_CHECK(child >= 0);
  if (!child) {
    filters();
    o_stop();
    void *p = malloc(10);
    free(p);
    _exit(37);
  }
  ends_with(child, 37);
}

SITE static void many(void) {
  for (int i = 0; i < 200; i++) {
    pid_t child = fork();
    O_CHECK(child >= 0);
    if (!child) {
      is_child();
      (void)o_malloc(24);
      _exit(0);
    }
    ends_with(child, 0);
  }
}

SITE static void outlives(void) {
  void *before = o_malloc(5);
  pid_t child = fork();
  O_CHECK(child >= 0);
  if (!child) {
    is_child();
    O_CHECK(setsid() > 0);
    for (int fd = 0; fd < 3; fd++) close(fd);
    while (getppid() == (pid_t)o_head->pid) usleep(1000);
    usleep(300000);
    works(&before, 1, 90);
    _exit(0);
  }
}

SITE static void with_threads(void) {
  pid_t child = fork();
  O_CHECK(child >= 0);
  if (!child) {
    is_child();
    pthread_t t[4];
    for (int i = 0; i < 4; i++) O_CHECK(!pthread_create(&t[i], NULL, busy, NULL));
    works(NULL, 0, 1000);
    usleep(20000);
    stop = 1;
    for (int i = 0; i < 4; i++) O_CHECK(!pthread_join(t[i], NULL));
    _exit(36);
  }
  ends_with(child, 36);
}

int main(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "forks";
  void *own = o_malloc(12345);
  if (!strcmp(how, "forks")) forks();
  else if (!strcmp(how, "raw")) raw();
  else if (!strcmp(how, "handler")) handler();
  else if (!strcmp(how, "closes")) closes();
  else if (!strcmp(how, "short")) many();
  else if (!strcmp(how, "daemon")) outlives();
  else if (!strcmp(how, "threads")) with_threads();
  else O_CHECK(0);
  o_free(own);
  errno = 0;
  o_observe(); // how much another thread does is chance
  o_flush();
  return 5;
}
