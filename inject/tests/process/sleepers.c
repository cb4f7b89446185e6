/* Sleeps in every blocking system call at once, one thread each, raw. Prints "ready", then a line for each call:
   name result errno milliseconds expected-result expected-errno milliseconds-meant kind
   kind: t = with a timeout, w = woken by the main thread, s = the timeout is a socket's. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 4000
static struct timespec rel = {4, 0};
static struct timeval tv_socket = {4, 0};
static int quiet[2], wake_pipe[2], epoll_quiet, epoll_woken, wake_event, sem_set, queue, lock_fd, child_pid;
static int futex_never, futex_woken, pty_master, pty_slave;
static int sock_woken[2];
static char lock_name[64];

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }
static struct timespec in_ms(clockid_t clock) {
    struct timespec t; clock_gettime(clock, &t);
    t.tv_sec += 4;
    return t;
}
static struct timeval rel_tv(void) { struct timeval t = {4, 0}; return t; }

#define CALL(name) static long do_##name(void)
#define R(...) return syscall(__VA_ARGS__)
CALL(epoll_wait) { struct epoll_event e; R(SYS_epoll_wait, epoll_quiet, &e, 1, MS); }
CALL(epoll_pwait) { struct epoll_event e; R(SYS_epoll_pwait, epoll_quiet, &e, 1, MS, 0, 8); }
CALL(epoll_pwait2) { struct epoll_event e; R(SYS_epoll_pwait2, epoll_quiet, &e, 1, &rel, 0, 8); }
CALL(epoll_woken) { struct epoll_event e; R(SYS_epoll_wait, epoll_woken, &e, 1, -1); }
CALL(poll) { struct pollfd p = {quiet[0], POLLIN, 0}; R(SYS_poll, &p, 1, MS); }
CALL(ppoll) { struct timespec t = rel; struct pollfd p = {quiet[0], POLLIN, 0}; R(SYS_ppoll, &p, 1, &t, 0, 8); }
CALL(select) { struct timeval t = rel_tv(); fd_set f; FD_ZERO(&f); FD_SET(quiet[0], &f); R(SYS_select, quiet[0] + 1, &f, 0, 0, &t); }
CALL(pselect) { struct timespec t = rel; fd_set f; FD_ZERO(&f); FD_SET(quiet[0], &f); R(SYS_pselect6, quiet[0] + 1, &f, 0, 0, &t, 0); }
CALL(nanosleep) { R(SYS_nanosleep, &rel, 0); }
CALL(clock_nanosleep) { R(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &rel, 0); }
CALL(clock_nanosleep_abs) { struct timespec t = in_ms(CLOCK_MONOTONIC); R(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &t, 0); }
CALL(futex_timed) { R(SYS_futex, &futex_never, FUTEX_WAIT_PRIVATE, 0, &rel, 0, 0); }
CALL(futex_woken) { R(SYS_futex, &futex_woken, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0); }
CALL(futex_bitset) { struct timespec t = in_ms(CLOCK_MONOTONIC); R(SYS_futex, &futex_never, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, 0, -1); }
static sigset_t usr2(void) { sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); return s; }
CALL(sigtimedwait) { sigset_t s = usr2(); R(SYS_rt_sigtimedwait, &s, 0, &rel, 8); }
CALL(sigwaitinfo) { sigset_t s = usr2(); R(SYS_rt_sigtimedwait, &s, 0, 0, 8); }
static int fresh_pair(int option) { int s[2]; socketpair(AF_UNIX, SOCK_STREAM, 0, s); setsockopt(s[0], SOL_SOCKET, option, &tv_socket, sizeof tv_socket); return s[0]; }
CALL(recv_socket) { char c; R(SYS_recvfrom, fresh_pair(SO_RCVTIMEO), &c, 1, 0, 0, 0); }
CALL(read_socket) { char c; R(SYS_read, fresh_pair(SO_RCVTIMEO), &c, 1); }
CALL(recv_woken) { char c; R(SYS_recvfrom, sock_woken[0], &c, 1, 0, 0, 0); }
CALL(send_socket) { static char b[4096]; int s = fresh_pair(SO_SNDTIMEO); while (send(s, b, sizeof b, MSG_DONTWAIT) > 0) {} R(SYS_sendto, s, b, sizeof b, 0, 0, 0); }
CALL(accept_socket) {
    struct sockaddr_un a = {AF_UNIX, ""}; int s = socket(AF_UNIX, SOCK_STREAM, 0);
    bind(s, (void *)&a, 2); listen(s, 1); setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &tv_socket, sizeof tv_socket);
    R(SYS_accept, s, 0, 0);
}
CALL(semop) { struct sembuf b = {0, -1, 0}; R(SYS_semop, sem_set, &b, 1); }
CALL(semtimedop) { struct sembuf b = {1, -1, 0}; R(SYS_semtimedop, sem_set, &b, 1, &rel); }
CALL(msgrcv) { struct { long type; char text[8]; } m; R(SYS_msgrcv, queue, &m, 8, 0, 0); }
CALL(wait4) { long r = syscall(SYS_wait4, child_pid, 0, 0, 0); return r == child_pid ? 1 : r; }
CALL(read_pipe) { char c; R(SYS_read, wake_pipe[0], &c, 1); }
CALL(read_eventfd) { long v; R(SYS_read, wake_event, &v, 8); }
CALL(read_tty) { char c; R(SYS_read, pty_slave, &c, 1); }
CALL(flock) { int f = open(lock_name, O_RDWR); R(SYS_flock, f, LOCK_EX); }
CALL(io_getevents) { aio_context_t c = 0; struct io_event e; syscall(SYS_io_setup, 4, &c); R(SYS_io_getevents, c, 1, 1, &e, &rel); }
CALL(pause) { R(SYS_pause); }
CALL(sigsuspend) { sigset_t s; sigemptyset(&s); R(SYS_rt_sigsuspend, &s, 8); }

static struct { const char *name; long (*call)(void); long result; int error; char kind; } calls[] = {
#define T(name, result, error, kind) {#name, do_##name, result, error, kind}
    T(epoll_wait, 0, 0, 't'), T(epoll_pwait, 0, 0, 't'), T(epoll_pwait2, 0, 0, 't'), T(epoll_woken, 1, 0, 'w'), T(poll, 0, 0, 't'),
    T(ppoll, 0, 0, 't'), T(select, 0, 0, 't'), T(pselect, 0, 0, 't'), T(nanosleep, 0, 0, 't'), T(clock_nanosleep, 0, 0, 't'),
    T(clock_nanosleep_abs, 0, 0, 't'), T(futex_timed, -1, ETIMEDOUT, 't'), T(futex_woken, 0, 0, 'w'), T(futex_bitset, -1, ETIMEDOUT, 't'),
    T(sigtimedwait, -1, EAGAIN, 't'), T(sigwaitinfo, SIGUSR2, 0, 'w'), T(recv_socket, -1, EAGAIN, 's'), T(read_socket, -1, EAGAIN, 's'),
    T(recv_woken, 1, 0, 'w'), T(send_socket, -1, EAGAIN, 's'), T(accept_socket, -1, EAGAIN, 's'), T(semop, 0, 0, 'w'),
    T(semtimedop, -1, EAGAIN, 't'), T(msgrcv, 8, 0, 'w'), T(wait4, 1, 0, 'w'), T(read_pipe, 1, 0, 'w'), T(read_eventfd, 8, 0, 'w'),
    T(read_tty, 1, 0, 'w'), T(flock, 0, 0, 'w'), T(io_getevents, 0, 0, 't'), T(pause, -1, EINTR, 'w'), T(sigsuspend, -1, EINTR, 'w'),
};
#define COUNT (sizeof calls / sizeof *calls)
static pthread_t threads[COUNT];
static int tids[COUNT];
static struct { long result; int error; double ms; } outcome[COUNT];

static void *sleeper(void *argument) {
    long i = (long)argument;
    int wants_usr1 = calls[i].call == do_pause;
    sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR2); if (!wants_usr1) sigaddset(&s, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &s, 0);
    __atomic_store_n(&tids[i], (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
    double begin = now(); errno = 0;
    outcome[i].result = calls[i].call();
    outcome[i].error = outcome[i].result < 0 ? errno : 0;
    outcome[i].ms = now() - begin;
    return 0;
}
static void nothing(int signal) { (void)signal; }
static int index_of(const char *name) { for (unsigned i = 0; i < COUNT; i++) if (!strcmp(calls[i].name, name)) return i; abort(); }

int main(void) {
    struct sigaction a = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &a, 0);
    sigset_t s = usr2(); sigaddset(&s, SIGUSR1); sigprocmask(SIG_BLOCK, &s, 0);
    pipe(quiet); pipe(wake_pipe); socketpair(AF_UNIX, SOCK_STREAM, 0, sock_woken);
    epoll_quiet = epoll_create1(0); epoll_woken = epoll_create1(0); wake_event = eventfd(0, 0);
    int epoll_event_fd = eventfd(0, 0); struct epoll_event e = {EPOLLIN, {0}}; epoll_ctl(epoll_woken, EPOLL_CTL_ADD, epoll_event_fd, &e);
    sem_set = semget(IPC_PRIVATE, 2, 0600); queue = msgget(IPC_PRIVATE, 0600);
    pty_master = posix_openpt(O_RDWR | O_NOCTTY); grantpt(pty_master); unlockpt(pty_master); pty_slave = open(ptsname(pty_master), O_RDWR | O_NOCTTY);
    snprintf(lock_name, sizeof lock_name, "/tmp/hound-sleepers-%d", getpid());
    lock_fd = open(lock_name, O_CREAT | O_RDWR, 0600); flock(lock_fd, LOCK_EX);
    int child_pipe[2]; pipe(child_pipe);
    child_pid = fork();
    if (!child_pid) { char c; close(child_pipe[1]); read(child_pipe[0], &c, 1); _exit(0); }
    pthread_attr_t attr; pthread_attr_init(&attr); pthread_attr_setstacksize(&attr, 1 << 18);
    double begin = now();
    for (long i = 0; i < (long)COUNT; i++) pthread_create(&threads[i], &attr, sleeper, (void *)i);
    for (unsigned i = 0; i < COUNT; i++) while (!__atomic_load_n(&tids[i], __ATOMIC_ACQUIRE)) usleep(100);
    printf("ready\n"); fflush(stdout);
    while (now() - begin < MS) usleep(20000);
    long one = 1;
    write(epoll_event_fd, &one, 8); write(wake_event, &one, 8); write(wake_pipe[1], "x", 1); write(sock_woken[1], "x", 1); write(pty_master, "\n", 1);
    futex_woken = 1; syscall(SYS_futex, &futex_woken, FUTEX_WAKE_PRIVATE, 1);
    struct sembuf up = {0, 1, 0}; semop(sem_set, &up, 1);
    struct { long type; char text[8]; } m = {1, "1234567"}; msgsnd(queue, &m, 8, 0);
    close(lock_fd);
    pthread_kill(threads[index_of("sigwaitinfo")], SIGUSR2);
    pthread_kill(threads[index_of("pause")], SIGUSR1); pthread_kill(threads[index_of("sigsuspend")], SIGUSR1);
    /* Last: pthread_kill blocks all signals for a moment. A SIGCHLD that comes then is not ignored, but wakes another thread with EINTR. */
    close(child_pipe[1]);
    for (unsigned i = 0; i < COUNT; i++) pthread_join(threads[i], 0);
    for (unsigned i = 0; i < COUNT; i++)
        printf("%s %ld %d %.0f %ld %d %d %c\n", calls[i].name, outcome[i].result, outcome[i].error, outcome[i].ms, calls[i].result, calls[i].error, MS, calls[i].kind);
    unlink(lock_name); semctl(sem_set, 0, IPC_RMID); msgctl(queue, IPC_RMID, 0);
    return 0;
}
