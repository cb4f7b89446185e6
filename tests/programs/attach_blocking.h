// Every kind of blocking system call that a profiler's stop could cut short: how to prepare it, how to block in it, how a peer ends it, and
// what it must return. Shared by attach_blocked.c (one process for each) and attach_torture.cpp (all of them, again and again).
//
// The calls are made raw, so that the number a test finds in /proc/PID/syscall is the one named here. A thread in one of them gets no
// signal: EINTR, a wrong value or a wrong moment is somebody else's doing.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define B_TIMES_OUT 1 // ends by itself after the time it was given
#define B_WOKEN 2     // ends when a peer acts
#define B_OF_SOCKET 4 // its timeout is the socket's, SO_RCVTIMEO or SO_SNDTIMEO: a stop by a hound that is killed begins it anew (docs/safety.md)
#define B_FOREVER (-1)
#define B_CHILD_STATUS 37
#define B_SIGNAL (SIGRTMIN + 7) // the caller blocks it in all threads

struct blocker {
  int fd[3];
  int id;           // of System V
  uint32_t word;    // a futex
  pid_t pid, tid, child;
  aio_context_t aio;
  struct sockaddr_un name;
  socklen_t name_length;
  char path[64];
  int ms; // what `wait` will be given; known to `prepare` for what a timer or a child ends
};

struct blocking {
  const char *name;
  long number; // of the system call
  int modes;
  int may_be_early_ms; // timeouts in jiffies and on the settable clock end up to that much early
  void (*prepare)(struct blocker *);
  long (*wait)(struct blocker *, int ms); // with errno set if it fails
  void (*wake)(struct blocker *);
  long timed_out;     // what it returns at its timeout, …
  int timed_out_errno; // … and errno if that is -1
  long woken;         // what it returns when woken; B_ANY_FD: a descriptor, which is closed
};
#define B_ANY_FD (-100)
#define B_THE_CHILD (-101)

static void b_must(int good, const char *what) {
  if (good) return;
  dprintf(2, "blocking: cannot prepare: %s (errno %d)\n", what, errno);
  _exit(98);
}
#define B_MUST(cond) b_must(!!(cond), #cond)

static struct timespec b_span(int ms) {
  struct timespec t;
  t.tv_sec = ms / 1000;
  t.tv_nsec = (long)(ms % 1000) * 1000000;
  return t;
}
static struct timespec b_from_now(clockid_t clock, int ms) {
  struct timespec t, s = b_span(ms);
  clock_gettime(clock, &t);
  t.tv_sec += s.tv_sec;
  t.tv_nsec += s.tv_nsec;
  if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
  return t;
}
// How long this thread has waited for a processor, as the kernel counts: a call that comes back late for that is not late. 0 if it does not
// count.
static double b_starved_ms(void) {
  char text[128] = {0};
  unsigned long long ran, waited = 0;
  int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  if (read(fd, text, sizeof text - 1) <= 0 || sscanf(text, "%llu %llu", &ran, &waited) != 2) waited = 0;
  close(fd);
  return (double)waited / 1e6;
}
static double b_now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

// ---- pipes and what else is read and polled ----

static void b_pipe(struct blocker *b) { B_MUST(!pipe2(b->fd, O_CLOEXEC)); }
static long b_read(struct blocker *b, int ms) {
  char c;
  (void)ms;
  return syscall(SYS_read, b->fd[0], &c, 1);
}
static void b_put(struct blocker *b) { B_MUST(write(b->fd[1], "x", 1) == 1); }

static void b_full_pipe(struct blocker *b) {
  static const char zeros[4096] = {0};
  b_pipe(b);
  B_MUST(!fcntl(b->fd[1], F_SETFL, O_NONBLOCK));
  while (write(b->fd[1], zeros, sizeof zeros) > 0) {}
  B_MUST(!fcntl(b->fd[1], F_SETFL, 0));
}
static long b_write(struct blocker *b, int ms) {
  static const char ones[4096] = {1};
  (void)ms;
  return syscall(SYS_write, b->fd[1], ones, sizeof ones);
}
static void b_drain(struct blocker *b) {
  char some[8192];
  B_MUST(read(b->fd[0], some, sizeof some) > 0);
}

static void b_timerfd(struct blocker *b) {
  struct itimerspec when;
  memset(&when, 0, sizeof when);
  when.it_value = b_span(b->ms);
  B_MUST((b->fd[0] = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)) >= 0 && !timerfd_settime(b->fd[0], 0, &when, NULL));
}
static long b_read8(struct blocker *b, int ms) {
  uint64_t n;
  (void)ms;
  long r = syscall(SYS_read, b->fd[0], &n, sizeof n);
  return r == 8 && n != 1 ? -200 : r;
}
static void b_eventfd(struct blocker *b) { B_MUST((b->fd[0] = eventfd(0, EFD_CLOEXEC)) >= 0); }
static void b_put8(struct blocker *b) {
  uint64_t one = 1;
  B_MUST(write(b->fd[0], &one, 8) == 8);
}
static void b_signalfd(struct blocker *b) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, B_SIGNAL);
  B_MUST((b->fd[0] = signalfd(-1, &set, SFD_CLOEXEC)) >= 0);
}
static long b_read_signal(struct blocker *b, int ms) {
  struct signalfd_siginfo info;
  (void)ms;
  long r = syscall(SYS_read, b->fd[0], &info, sizeof info);
  return r == (long)sizeof info ? (long)info.ssi_signo - B_SIGNAL : r;
}
static void b_signal(struct blocker *b) { B_MUST(!syscall(SYS_tgkill, b->pid, b->tid, B_SIGNAL)); }

static void b_epoll(struct blocker *b) {
  struct epoll_event e;
  memset(&e, 0, sizeof e);
  b_pipe(b);
  e.events = EPOLLIN;
  B_MUST((b->fd[2] = epoll_create1(EPOLL_CLOEXEC)) >= 0 && !epoll_ctl(b->fd[2], EPOLL_CTL_ADD, b->fd[0], &e));
}
static long b_epoll_wait(struct blocker *b, int ms) {
  struct epoll_event e;
  return syscall(SYS_epoll_wait, b->fd[2], &e, 1, ms);
}
static long b_epoll_pwait(struct blocker *b, int ms) {
  struct epoll_event e;
  uint64_t mask = ~0ull;
  return syscall(SYS_epoll_pwait, b->fd[2], &e, 1, ms, &mask, sizeof mask);
}
static long b_epoll_pwait2(struct blocker *b, int ms) {
  struct epoll_event e;
  struct timespec t = b_span(ms);
  return syscall(441 /* epoll_pwait2 */, b->fd[2], &e, 1, ms < 0 ? NULL : &t, NULL, 8);
}
static long b_poll(struct blocker *b, int ms) {
  struct pollfd p = {b->fd[0], POLLIN, 0};
  return syscall(SYS_poll, &p, 1, ms);
}
static long b_ppoll(struct blocker *b, int ms) {
  struct pollfd p = {b->fd[0], POLLIN, 0};
  struct timespec t = b_span(ms);
  uint64_t mask = ~0ull;
  return syscall(SYS_ppoll, &p, 1, ms < 0 ? NULL : &t, &mask, sizeof mask);
}
static long b_select(struct blocker *b, int ms) {
  fd_set set;
  struct timeval t = {ms / 1000, (ms % 1000) * 1000};
  FD_ZERO(&set);
  B_MUST(b->fd[0] < FD_SETSIZE);
  FD_SET(b->fd[0], &set);
  return syscall(SYS_select, b->fd[0] + 1, &set, NULL, NULL, ms < 0 ? NULL : &t);
}
static long b_pselect(struct blocker *b, int ms) {
  fd_set set;
  struct timespec t = b_span(ms);
  uint64_t mask = ~0ull;
  struct { uint64_t *mask; size_t size; } masked = {&mask, sizeof mask};
  FD_ZERO(&set);
  B_MUST(b->fd[0] < FD_SETSIZE);
  FD_SET(b->fd[0], &set);
  return syscall(SYS_pselect6, b->fd[0] + 1, &set, NULL, NULL, ms < 0 ? NULL : &t, &masked);
}

// ---- clocks and futexes ----

static void b_nothing(struct blocker *b) { b->word = 0; }
static long b_nanosleep(struct blocker *b, int ms) {
  // What is left is the kernel's to write at every stop, a SIGSTOP's too, also where the sleep goes on afterwards.
  struct timespec t = b_span(ms), left;
  (void)b;
  return syscall(SYS_nanosleep, &t, &left);
}
static long b_clock_nanosleep(struct blocker *b, int ms) {
  struct timespec t = b_span(ms), left;
  (void)b;
  return syscall(SYS_clock_nanosleep, CLOCK_BOOTTIME, 0, &t, &left);
}
static long b_clock_nanosleep_until(struct blocker *b, int ms) {
  struct timespec t = b_from_now(CLOCK_MONOTONIC, ms);
  (void)b;
  return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}
static long b_futex(struct blocker *b, int ms) {
  struct timespec t = b_span(ms);
  return syscall(SYS_futex, &b->word, FUTEX_WAIT, 0, ms < 0 ? NULL : &t, NULL, 0);
}
static long b_futex_until(struct blocker *b, int ms) {
  struct timespec t = b_from_now(CLOCK_MONOTONIC, ms < 0 ? 3600000 : ms);
  return syscall(SYS_futex, &b->word, FUTEX_WAIT_BITSET, 0, &t, NULL, 1);
}
static long b_futex_many(struct blocker *b, int ms) {
  struct { uint64_t value, address; uint32_t flags, reserved; } waiter = {0, (uint64_t)(uintptr_t)&b->word, 2, 0};
  struct timespec t = b_from_now(CLOCK_MONOTONIC, ms < 0 ? 3600000 : ms);
  return syscall(449 /* futex_waitv */, &waiter, 1, 0, &t, CLOCK_MONOTONIC);
}
static void b_wake_futex(struct blocker *b) {
  __atomic_store_n(&b->word, 1, __ATOMIC_SEQ_CST);
  syscall(SYS_futex, &b->word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

// ---- signals, children ----

static long b_sigtimedwait(struct blocker *b, int ms) {
  uint64_t set = 1ull << (B_SIGNAL - 1);
  struct timespec t = b_span(ms);
  (void)b;
  long r = syscall(SYS_rt_sigtimedwait, &set, NULL, ms < 0 ? NULL : &t, sizeof set);
  return r > 0 ? r - B_SIGNAL : r; // the same as at once, if it is the right one
}

static void b_child(struct blocker *b) {
  struct timespec t = b_span(b->ms);
  pid_t child = fork();
  B_MUST(child >= 0);
  if (!child) {
    while (syscall(SYS_nanosleep, &t, &t) && errno == EINTR) {}
    _exit(B_CHILD_STATUS);
  }
  b->child = child;
}
static long b_wait4(struct blocker *b, int ms) {
  int status = 0;
  (void)ms;
  long r = syscall(SYS_wait4, b->child, &status, 0, NULL);
  return r == b->child && !(WIFEXITED(status) && WEXITSTATUS(status) == B_CHILD_STATUS) ? -200 : r;
}
static long b_waitid(struct blocker *b, int ms) {
  siginfo_t info;
  (void)ms;
  memset(&info, 0, sizeof info);
  long r = syscall(SYS_waitid, P_PID, b->child, &info, WEXITED, NULL);
  return r == 0 && (info.si_pid != b->child || info.si_status != B_CHILD_STATUS) ? -200 : r ? r : b->child;
}

// ---- sockets ----

static void b_timeouts(int fd, int ms) {
  struct timeval t = {ms / 1000, (ms % 1000) * 1000};
  if (ms < 0) return;
  B_MUST(!setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t) && !setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t));
}
static void b_pair(struct blocker *b) { B_MUST(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b->fd)); }
static long b_recv(struct blocker *b, int ms) {
  char c;
  b_timeouts(b->fd[0], ms);
  return syscall(SYS_recvfrom, b->fd[0], &c, 1, 0, NULL, NULL);
}
static long b_recvmsg(struct blocker *b, int ms) {
  char c;
  struct iovec piece = {&c, 1};
  struct msghdr m;
  memset(&m, 0, sizeof m);
  m.msg_iov = &piece;
  m.msg_iovlen = 1;
  b_timeouts(b->fd[0], ms);
  return syscall(SYS_recvmsg, b->fd[0], &m, 0);
}
static long b_read_socket(struct blocker *b, int ms) {
  char c;
  b_timeouts(b->fd[0], ms);
  return syscall(SYS_read, b->fd[0], &c, 1);
}
static void b_full_pair(struct blocker *b) {
  static const char zeros[4096] = {0};
  b_pair(b);
  while (send(b->fd[0], zeros, sizeof zeros, MSG_DONTWAIT) > 0) {}
}
static long b_send(struct blocker *b, int ms) {
  b_timeouts(b->fd[0], ms);
  return syscall(SYS_sendto, b->fd[0], "y", 1, MSG_NOSIGNAL, NULL, 0);
}
static void b_drain_pair(struct blocker *b) {
  char some[4096];
  while (recv(b->fd[1], some, sizeof some, MSG_DONTWAIT) > 0) {}
}
static void b_listen(struct blocker *b) {
  sa_family_t family = AF_UNIX;
  B_MUST((b->fd[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0);
  B_MUST(!bind(b->fd[0], (struct sockaddr *)&family, sizeof family)); // a name of the kernel's choice
  b->name_length = sizeof b->name;
  B_MUST(!getsockname(b->fd[0], (struct sockaddr *)&b->name, &b->name_length) && !listen(b->fd[0], 0));
}
static int b_dial(struct blocker *b) {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  B_MUST(fd >= 0);
  if (!connect(fd, (struct sockaddr *)&b->name, b->name_length)) return fd;
  close(fd);
  return -1;
}
static long b_accept(struct blocker *b, int ms) {
  b_timeouts(b->fd[0], ms);
  return syscall(SYS_accept4, b->fd[0], NULL, NULL, SOCK_CLOEXEC);
}
static void b_call(struct blocker *b) { close(b_dial(b)); }
static void b_full_listen(struct blocker *b) {
  b_listen(b);
  B_MUST((b->fd[1] = b_dial(b)) >= 0 && b_dial(b) < 0);
  B_MUST((b->fd[2] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0);
}
static long b_connect(struct blocker *b, int ms) {
  b_timeouts(b->fd[2], ms);
  return syscall(SYS_connect, b->fd[2], &b->name, b->name_length);
}
static void b_take_call(struct blocker *b) {
  int fd = accept4(b->fd[0], NULL, NULL, SOCK_CLOEXEC);
  B_MUST(fd >= 0);
  close(fd);
}

// ---- System V, message queues, locks ----

static void b_semaphore(struct blocker *b) { B_MUST((b->id = semget(IPC_PRIVATE, 1, 0600)) >= 0); }
static long b_semop(struct blocker *b, int ms) {
  struct sembuf take = {0, -1, 0};
  (void)ms;
  return syscall(SYS_semop, b->id, &take, 1);
}
static long b_semtimedop(struct blocker *b, int ms) {
  struct sembuf take = {0, -1, 0};
  struct timespec t = b_span(ms);
  return syscall(SYS_semtimedop, b->id, &take, 1, ms < 0 ? NULL : &t);
}
static void b_post(struct blocker *b) {
  struct sembuf give = {0, 1, 0};
  B_MUST(!semop(b->id, &give, 1));
}
struct b_message {
  long type;
  char text[2048];
};
static void b_queue(struct blocker *b) { B_MUST((b->id = msgget(IPC_PRIVATE, 0600)) >= 0); }
static long b_msgrcv(struct blocker *b, int ms) {
  struct b_message m;
  (void)ms;
  return syscall(SYS_msgrcv, b->id, &m, sizeof m.text, 0, 0);
}
static void b_msg(struct blocker *b) {
  struct b_message m = {1, {0}};
  B_MUST(!msgsnd(b->id, &m, 1, IPC_NOWAIT));
}
static void b_full_queue(struct blocker *b) {
  struct b_message m = {1, {0}};
  b_queue(b);
  while (!msgsnd(b->id, &m, sizeof m.text, IPC_NOWAIT)) {}
}
static long b_msgsnd(struct blocker *b, int ms) {
  struct b_message m = {2, {0}};
  (void)ms;
  return syscall(SYS_msgsnd, b->id, &m, sizeof m.text, 0);
}
static void b_unmsg(struct blocker *b) {
  struct b_message m;
  B_MUST(msgrcv(b->id, &m, sizeof m.text, 0, IPC_NOWAIT) >= 0);
}
static void b_mqueue(struct blocker *b) {
  static uint32_t made;
  struct mq_attr about;
  char name[64];
  memset(&about, 0, sizeof about);
  about.mq_maxmsg = 1;
  about.mq_msgsize = 1;
  snprintf(name, sizeof name, "hound-%d-%u", (int)getpid(), __atomic_fetch_add(&made, 1, __ATOMIC_RELAXED));
  B_MUST((b->fd[0] = (int)syscall(SYS_mq_open, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600, &about)) >= 0);
  B_MUST(!syscall(SYS_mq_unlink, name));
}
static long b_mq_receive(struct blocker *b, int ms) {
  char c;
  struct timespec t = b_from_now(CLOCK_REALTIME, ms);
  return syscall(SYS_mq_timedreceive, b->fd[0], &c, 1, NULL, ms < 0 ? NULL : &t);
}
static void b_mq_send(struct blocker *b) { B_MUST(!syscall(SYS_mq_timedsend, b->fd[0], "m", 1, 0, NULL)); }

static void b_locked(struct blocker *b) { // two open files of one inode, locked through the second
  char path[64];
  B_MUST((b->fd[0] = memfd_create("lock", MFD_CLOEXEC)) >= 0);
  snprintf(path, sizeof path, "/proc/self/fd/%d", b->fd[0]);
  B_MUST((b->fd[1] = open(path, O_RDWR | O_CLOEXEC)) >= 0);
}
static void b_flocked(struct blocker *b) {
  b_locked(b);
  B_MUST(!flock(b->fd[1], LOCK_EX));
}
static long b_flock(struct blocker *b, int ms) {
  (void)ms;
  return syscall(SYS_flock, b->fd[0], LOCK_EX);
}
static void b_unflock(struct blocker *b) { B_MUST(!flock(b->fd[1], LOCK_UN)); }
static struct flock b_range(short type) {
  struct flock l;
  memset(&l, 0, sizeof l);
  l.l_type = type;
  return l;
}
static void b_ofd_locked(struct blocker *b) {
  struct flock l = b_range(F_WRLCK);
  b_locked(b);
  B_MUST(!fcntl(b->fd[1], F_OFD_SETLK, &l));
}
static long b_fcntl(struct blocker *b, int ms) {
  struct flock l = b_range(F_WRLCK);
  (void)ms;
  return syscall(SYS_fcntl, b->fd[0], F_OFD_SETLKW, &l);
}
static void b_ofd_unlock(struct blocker *b) {
  struct flock l = b_range(F_UNLCK);
  B_MUST(!fcntl(b->fd[1], F_OFD_SETLK, &l));
}
static void b_fifo(struct blocker *b) {
  static uint32_t made;
  snprintf(b->path, sizeof b->path, "/tmp/hound-fifo-%d-%u", (int)getpid(), __atomic_fetch_add(&made, 1, __ATOMIC_RELAXED));
  B_MUST(!mkfifo(b->path, 0600));
}
static long b_open(struct blocker *b, int ms) {
  (void)ms;
  long r = syscall(SYS_openat, AT_FDCWD, b->path, O_RDONLY | O_CLOEXEC, 0);
  __atomic_store_n(&b->word, r < 0, __ATOMIC_SEQ_CST); // a signal has ended it: the other side shall not wait
  return r;
}
static void b_open_other(struct blocker *b) {
  int fd = -1;
  while (fd < 0 && !__atomic_load_n(&b->word, __ATOMIC_SEQ_CST)) { // until the other side is there
    fd = open(b->path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) usleep(1000);
  }
  if (fd >= 0) close(fd);
}
static void b_aio(struct blocker *b) { B_MUST(!syscall(SYS_io_setup, 1, &b->aio)); }
static long b_io_getevents(struct blocker *b, int ms) {
  struct io_event e;
  struct timespec t = b_span(ms);
  return syscall(SYS_io_getevents, b->aio, 1, 1, &e, &t);
}

static void b_uring(struct blocker *b) {
  struct io_uring_params about;
  memset(&about, 0, sizeof about);
  B_MUST((b->fd[0] = (int)syscall(SYS_io_uring_setup, 4, &about)) >= 0);
  b->word = about.sq_off.tail;
}
static long b_uring_enter(struct blocker *b, int ms) {
  (void)ms;
  return syscall(SYS_io_uring_enter, b->fd[0], 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
}
static void b_complete(struct blocker *b) { // submits an operation that does nothing
  size_t ring_bytes = 4096, entry_bytes = 4 * sizeof(struct io_uring_sqe);
  int both = PROT_READ | PROT_WRITE;
  int lasting = MAP_SHARED | MAP_POPULATE;
  char *ring = (char *)mmap(NULL, ring_bytes, both, lasting, b->fd[0], IORING_OFF_SQ_RING);
  struct io_uring_sqe *entries = (struct io_uring_sqe *)mmap(NULL, entry_bytes, both, lasting, b->fd[0], IORING_OFF_SQES);
  B_MUST(ring != MAP_FAILED && (void *)entries != MAP_FAILED);
  memset(entries, 0, sizeof *entries); // IORING_OP_NOP; the array's first word is 0 already
  __atomic_store_n((uint32_t *)(ring + b->word), 1, __ATOMIC_RELEASE);
  B_MUST(syscall(SYS_io_uring_enter, b->fd[0], 1, 0, 0, NULL, 0) == 1);
  munmap(ring, ring_bytes);
  munmap(entries, entry_bytes);
}

static const struct blocking blockings[] = {
    {"read_pipe", SYS_read, B_WOKEN, 0, b_pipe, b_read, b_put, 0, 0, 1},
    {"write_pipe", SYS_write, B_WOKEN, 0, b_full_pipe, b_write, b_drain, 0, 0, 4096},
    {"read_timerfd", SYS_read, B_TIMES_OUT, 0, b_timerfd, b_read8, NULL, 8, 0, 0},
    {"read_eventfd", SYS_read, B_WOKEN, 0, b_eventfd, b_read8, b_put8, 0, 0, 8},
    {"read_signalfd", SYS_read, B_WOKEN, 0, b_signalfd, b_read_signal, b_signal, 0, 0, 0},
    {"epoll_wait", SYS_epoll_wait, B_TIMES_OUT | B_WOKEN, 0, b_epoll, b_epoll_wait, b_put, 0, 0, 1},
    {"epoll_pwait", SYS_epoll_pwait, B_TIMES_OUT | B_WOKEN, 0, b_epoll, b_epoll_pwait, b_put, 0, 0, 1},
    {"epoll_pwait2", 441, B_TIMES_OUT | B_WOKEN, 0, b_epoll, b_epoll_pwait2, b_put, 0, 0, 1},
    {"poll", SYS_poll, B_TIMES_OUT | B_WOKEN, 0, b_pipe, b_poll, b_put, 0, 0, 1},
    {"ppoll", SYS_ppoll, B_TIMES_OUT | B_WOKEN, 0, b_pipe, b_ppoll, b_put, 0, 0, 1},
    {"select", SYS_select, B_TIMES_OUT | B_WOKEN, 0, b_pipe, b_select, b_put, 0, 0, 1},
    {"pselect", SYS_pselect6, B_TIMES_OUT | B_WOKEN, 0, b_pipe, b_pselect, b_put, 0, 0, 1},
    {"nanosleep", SYS_nanosleep, B_TIMES_OUT, 0, b_nothing, b_nanosleep, NULL, 0, 0, 0},
    {"clock_nanosleep", SYS_clock_nanosleep, B_TIMES_OUT, 0, b_nothing, b_clock_nanosleep, NULL, 0, 0, 0},
    {"clock_nanosleep_until", SYS_clock_nanosleep, B_TIMES_OUT, 0, b_nothing, b_clock_nanosleep_until, NULL, 0, 0, 0},
    {"futex", SYS_futex, B_TIMES_OUT | B_WOKEN, 0, b_nothing, b_futex, b_wake_futex, -1, ETIMEDOUT, 0},
    {"futex_until", SYS_futex, B_TIMES_OUT | B_WOKEN, 0, b_nothing, b_futex_until, b_wake_futex, -1, ETIMEDOUT, 0},
    {"futex_waitv", 449, B_TIMES_OUT | B_WOKEN, 0, b_nothing, b_futex_many, b_wake_futex, -1, ETIMEDOUT, 0},
    {"sigtimedwait", SYS_rt_sigtimedwait, B_TIMES_OUT | B_WOKEN, 0, b_nothing, b_sigtimedwait, b_signal, -1, EAGAIN, 0},
    {"wait4", SYS_wait4, B_TIMES_OUT, 0, b_child, b_wait4, NULL, B_THE_CHILD, 0, 0},
    {"waitid", SYS_waitid, B_TIMES_OUT, 0, b_child, b_waitid, NULL, B_THE_CHILD, 0, 0},
    {"recv", SYS_recvfrom, B_TIMES_OUT | B_WOKEN | B_OF_SOCKET, 8, b_pair, b_recv, b_put, -1, EAGAIN, 1},
    {"recvmsg", SYS_recvmsg, B_TIMES_OUT | B_WOKEN | B_OF_SOCKET, 8, b_pair, b_recvmsg, b_put, -1, EAGAIN, 1},
    {"read_socket", SYS_read, B_TIMES_OUT | B_WOKEN | B_OF_SOCKET, 8, b_pair, b_read_socket, b_put, -1, EAGAIN, 1},
    {"send", SYS_sendto, B_TIMES_OUT | B_WOKEN | B_OF_SOCKET, 8, b_full_pair, b_send, b_drain_pair, -1, EAGAIN, 1},
    {"accept", SYS_accept4, B_TIMES_OUT | B_WOKEN | B_OF_SOCKET, 8, b_listen, b_accept, b_call, -1, EAGAIN, B_ANY_FD},
    {"connect", SYS_connect, B_TIMES_OUT | B_WOKEN | B_OF_SOCKET, 8, b_full_listen, b_connect, b_take_call, -1, EAGAIN, 0},
    {"semop", SYS_semop, B_WOKEN, 0, b_semaphore, b_semop, b_post, 0, 0, 0},
    {"semtimedop", SYS_semtimedop, B_TIMES_OUT | B_WOKEN, 8, b_semaphore, b_semtimedop, b_post, -1, EAGAIN, 0},
    {"msgrcv", SYS_msgrcv, B_WOKEN, 0, b_queue, b_msgrcv, b_msg, 0, 0, 1},
    {"msgsnd", SYS_msgsnd, B_WOKEN, 0, b_full_queue, b_msgsnd, b_unmsg, 0, 0, 0},
    {"mq_timedreceive", SYS_mq_timedreceive, B_TIMES_OUT | B_WOKEN, 20, b_mqueue, b_mq_receive, b_mq_send, -1, ETIMEDOUT, 1},
    {"flock", SYS_flock, B_WOKEN, 0, b_flocked, b_flock, b_unflock, 0, 0, 0},
    {"fcntl_lock", SYS_fcntl, B_WOKEN, 0, b_ofd_locked, b_fcntl, b_ofd_unlock, 0, 0, 0},
    {"open_fifo", SYS_openat, B_WOKEN, 0, b_fifo, b_open, b_open_other, 0, 0, B_ANY_FD},
    {"io_getevents", SYS_io_getevents, B_TIMES_OUT, 0, b_aio, b_io_getevents, NULL, 0, 0, 0},
    {"io_uring_enter", SYS_io_uring_enter, B_WOKEN, 0, b_uring, b_uring_enter, b_complete, 0, 0, 0},
};
#define BLOCKINGS (sizeof blockings / sizeof *blockings)

// Whether the moment of its end is the kernel's alone: no peer and no child decides it.
static int b_ends_by_timer(const struct blocking *k, int woken) { return !woken && k->timed_out != B_THE_CHILD; }

// Makes `b` ready for one call that will take `ms` if nobody wakes it.
static void b_begin(const struct blocking *k, struct blocker *b, int ms) {
  memset(b, 0, sizeof *b);
  b->fd[0] = b->fd[1] = b->fd[2] = b->id = -1;
  b->pid = getpid();
  b->tid = (pid_t)syscall(SYS_gettid);
  b->ms = ms;
  k->prepare(b);
}

// Gives back what `b_begin` took.
static void b_end(const struct blocking *k, struct blocker *b) {
  for (int i = 0; i < 3; i++)
    if (b->fd[i] >= 0) close(b->fd[i]);
  if (b->id >= 0 && (k->prepare == b_semaphore)) semctl(b->id, 0, IPC_RMID);
  if (b->id >= 0 && (k->prepare == b_queue || k->prepare == b_full_queue)) msgctl(b->id, IPC_RMID, NULL);
  if (b->path[0]) unlink(b->path);
  if (k->wake == b_signal) { // one that came too late for its call
    struct timespec now = {0, 0};
    uint64_t set = 1ull << (B_SIGNAL - 1);
    while (syscall(SYS_rt_sigtimedwait, &set, NULL, &now, sizeof set) > 0) {}
  }
  if (b->aio) syscall(SYS_io_destroy, b->aio);
}

// Whether the call returned what it must.
static int b_right(const struct blocking *k, const struct blocker *b, int woken, long value, int error) {
  long wanted = woken ? k->woken : k->timed_out;
  // A futex wait that is entered anew after the word has changed says so: what every user of futexes expects.
  if (woken && k->wake == b_wake_futex && value == -1 && error == EAGAIN) return __atomic_load_n(&b->word, __ATOMIC_SEQ_CST) == 1;
  if (wanted == B_ANY_FD) return value >= 0;
  if (wanted == B_THE_CHILD) return value == b->child;
  return value == wanted && (value != -1 || error == k->timed_out_errno);
}
