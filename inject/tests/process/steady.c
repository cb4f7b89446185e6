/* Checks itself all along, on ARGV[1] threads: registers (general, SSE, AVX) across a spin, the signal mask, memory, calls that SA_RESTART
   protects; signals with such handlers arrive all the time. Prints "ready", and "ok ROUNDS SIGNALS" or "bad WHAT" after a line of input. */
#define _GNU_SOURCE
#include <errno.h>
#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int stop;
static const char *volatile bad;
static unsigned long rounds, handled;
static int ping[2];

static void handler(int signal) { (void)signal; __atomic_add_fetch(&handled, 1, __ATOMIC_RELAXED); }

static void fail(const char *what) { bad = what; }

/* Values in callee- and caller-saved registers and in ymm registers must survive a loop of nothing. */
static void registers(unsigned long seed) {
    unsigned long a = seed, b = seed * 3, c = seed * 5, d = seed * 7;
    __m256i v = _mm256_set1_epi64x((long)seed), w = _mm256_set1_epi64x((long)~seed);
    long turns = 20000;
    __asm__ volatile("1: dec %0\n jnz 1b\n" : "+r"(turns), "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+x"(v), "+x"(w));
    if (a != seed || b != seed * 3 || c != seed * 5 || d != seed * 7) fail("general registers");
    __m256i same = _mm256_cmpeq_epi64(_mm256_xor_si256(v, w), _mm256_set1_epi64x(-1));
    if (_mm256_movemask_epi8(same) != -1) fail("vector registers");
}

static void *worker(void *argument) {
    long number = (long)argument;
    unsigned long sum = 0, memory[512];
    sigset_t mask; sigemptyset(&mask); sigaddset(&mask, SIGUSR2); if (number % 2) sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &mask, 0);
    for (int i = 0; i < 512; i++) sum += memory[i] = number * 1000 + i;
    while (!stop) {
        registers(0x123456789abcdefUL + number);
        sigset_t seen; sigemptyset(&seen); pthread_sigmask(SIG_SETMASK, 0, &seen);
        if (memcmp(&seen, &mask, 8)) fail("signal mask");
        unsigned long again = 0; for (int i = 0; i < 512; i++) again += memory[i];
        if (again != sum) fail("memory");
        /* nanosleep and epoll_wait end with EINTR when a handler runs: only threads that block SIGUSR1 may expect none. */
        struct timespec t = {0, 200000};
        if (number % 2 && syscall(SYS_nanosleep, &t, 0) != 0) fail("nanosleep");
        char c = 'x';
        if (write(ping[1], &c, 1) != 1) fail("write");
        if (read(ping[0], &c, 1) != 1) fail("read");
        if (syscall(SYS_getppid) <= 0) fail("getppid");
        __atomic_add_fetch(&rounds, 1, __ATOMIC_RELAXED);
    }
    return 0;
}
static void *blocked(void *argument) {
    int *p = argument; char c;
    long r = read(p[0], &c, 1); /* SA_RESTART: must never end with EINTR */
    if (r != 1) fail("blocked read");
    return 0;
}
static void *beater(void *argument) {
    (void)argument;
    sigset_t s; sigfillset(&s); pthread_sigmask(SIG_SETMASK, &s, 0);
    while (!stop) { kill(getpid(), SIGUSR1); struct timespec t = {0, 300000}; syscall(SYS_nanosleep, &t, 0); }
    return 0;
}
int main(int count, char **arguments) {
    long n = count > 1 ? atol(arguments[1]) : 4;
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &a, 0);
    int wake[2]; pipe(ping); pipe(wake);
    pthread_t *t = calloc(n + 2, sizeof *t);
    for (long i = 0; i < n; i++) pthread_create(&t[i], 0, worker, (void *)i);
    pthread_create(&t[n], 0, blocked, wake);
    pthread_create(&t[n + 1], 0, beater, 0);
    printf("ready\n"); fflush(stdout);
    char line[16];
    while (fgets(line, sizeof line, stdin)) { /* each line asks: are you well, and moving? */
        unsigned long before = __atomic_load_n(&rounds, __ATOMIC_RELAXED), signals = __atomic_load_n(&handled, __ATOMIC_RELAXED);
        while (!bad && (__atomic_load_n(&rounds, __ATOMIC_RELAXED) < before + n || __atomic_load_n(&handled, __ATOMIC_RELAXED) == signals)) usleep(100);
        if (bad) printf("bad %s\n", bad); else printf("ok %lu %lu\n", rounds, handled);
        fflush(stdout);
    }
    stop = 1;
    write(wake[1], "x", 1);
    for (long i = 0; i < n + 2; i++) pthread_join(t[i], 0);
    if (bad) { printf("bad %s\n", bad); return 1; }
    return 0;
}
