// Threads that check themselves all along, whatever happens to a hound that visits; `attach_death SHARED`. SHARED is a file of 64 words that
// its caller reads and writes: orders, failures, and how far each thread has come. Ends when it is told to, with status 0 if nothing was
// wrong; what was wrong is on standard error.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ALLOCATORS = 3, BLOCKS = 64, THREADS = ALLOCATORS + 8, ALTERNATE = 64 * 1024 };
enum order { GO, STILL, END };

// What the caller sees. `still`: the order to be still is obeyed: no thread is made, no process, no mapping.
static struct {
    atomic_ulong order, still, failures, interrupted, threads, longest_us, reserved[2], progress[THREADS];
} *shared;

static void fail(const char *what, long seen) {
    atomic_fetch_add(&shared->failures, 1);
    dprintf(2, "wrong: %s: %ld (errno %d)\n", what, seen, errno);
}

static int ends(void) { return atomic_load(&shared->order) == END; }

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void step(long thread) { atomic_fetch_add(&shared->progress[thread], 1); }

// Blocks with contents of their own. No call may touch errno unless it fails.
static void *allocates(void *argument) {
    long own = (long)argument;
    uint64_t seed = (uint64_t)own * 7919 + 1;
    unsigned char *block[BLOCKS] = {0};
    size_t size[BLOCKS] = {0};
    while (!ends()) {
        uint64_t start = now_us();
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        unsigned at = (seed >> 33) % BLOCKS;
        size_t want = (seed >> 40) % 3000 + 1;
        unsigned char mark = (unsigned char)(at * 31 + own * 7 + 1);
        errno = 77;
        size_t kept = 0;
        switch (seed >> 60 & 3) {
        case 0:
            block[at] = realloc(block[at], want);
            kept = size[at] < want ? size[at] : want;
            break;
        case 1:
            free(block[at]);
            block[at] = calloc(1, want);
            for (size_t i = 0; block[at] && i < want; i += 61)
                if (block[at][i]) fail("calloc gave used memory", (long)i);
            break;
        case 2:
            free(block[at]);
            block[at] = aligned_alloc(64, (want + 63) / 64 * 64);
            if ((uintptr_t)block[at] % 64) fail("aligned_alloc", (long)block[at]);
            break;
        default:
            free(block[at]);
            block[at] = malloc(want);
        }
        if (!block[at]) {
            fail("no memory", (long)want);
            break;
        }
        if (errno != 77) fail("the allocator changed errno", errno);
        for (size_t i = 0; i < kept; i += 61)
            if (block[at][i] != mark) fail("a block's content has changed", (long)i);
        memset(block[at], mark, size[at] = want);
        if (seed >> 56 == 0) {
            errno = 0;
            if (malloc(PTRDIFF_MAX - 100) || errno != ENOMEM) fail("a malloc that must fail", errno);
        }
        uint64_t took = now_us() - start;
        if (took > atomic_load(&shared->longest_us)) atomic_store(&shared->longest_us, took);
        step(own);
    }
    for (unsigned at = 0; at < BLOCKS; at++) free(block[at]);
    return NULL;
}

// Calls that wait, and must neither end early nor otherwise than alone.
enum { SLEEPS = ALLOCATORS, POLLS, READS, WRITES, EPOLLS, SIGNALS, SIGNALLED };

static void late_enough(const char *what, uint64_t start, uint64_t us) {
    uint64_t took = now_us() - start;
    if (took < us) fail(what, (long)took);
}

static void *sleeps(void *argument) {
    while (!ends()) {
        uint64_t start = now_us();
        struct timespec t = {0, 20000000};
        errno = 77;
        int value = nanosleep(&t, NULL);
        if (value || errno != 77) fail("nanosleep", value);
        late_enough("nanosleep was early", start, 20000);
        step(SLEEPS);
    }
    return argument;
}

static void *polls(void *argument) {
    struct pollfd file = {.fd = *(int *)argument, .events = POLLIN};
    while (!ends()) {
        uint64_t start = now_us();
        errno = 77;
        int value = poll(&file, 1, 30);
        if (value || errno != 77) fail("poll", value);
        late_enough("poll was early", start, 30000);
        step(POLLS);
    }
    return NULL;
}

static void *reads(void *argument) {
    uint64_t expected = 0, got;
    for (;;) {
        ssize_t n = read(*(int *)argument, &got, sizeof got);
        if (n == 0) return NULL; // the writer has ended
        if (n != sizeof got || got != expected) fail("read", n == sizeof got ? (long)got : (long)n);
        expected = got + 1;
        step(READS);
    }
}

static void *writes(void *argument) {
    int file = *(int *)argument;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never;
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&never, &clock);
    for (uint64_t next = 0; !ends(); next++) {
        if (write(file, &next, sizeof next) != sizeof next) fail("write", (long)next);
        uint64_t until = now_us() + 10000;
        struct timespec t = {(time_t)(until / 1000000), (long)(until % 1000000) * 1000};
        pthread_mutex_lock(&lock);
        int value;
        while ((value = pthread_cond_timedwait(&never, &lock, &t)) == 0) {}
        pthread_mutex_unlock(&lock);
        if (value != ETIMEDOUT || now_us() + 1 < until) fail("pthread_cond_timedwait", value);
        step(WRITES);
    }
    close(file);
    return NULL;
}

// The kernel ends this call with EINTR when a thread is stopped. hound takes that back, unless it dies before it can.
static void *epolls(void *argument) {
    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, *(int *)argument, &event)) fail("epoll_ctl", 0);
    while (!ends()) {
        uint64_t start = now_us();
        int value = epoll_wait(poll, &event, 1, 25);
        if (value == -1 && errno == EINTR) {
            atomic_fetch_add(&shared->interrupted, 1);
            continue;
        }
        if (value) fail("epoll_wait", value);
        late_enough("epoll_wait was early", start, 25000);
        step(EPOLLS);
    }
    close(poll);
    return NULL;
}

// Queued signals arrive once each, in order, on the alternate stack, and leave mask and stack settings alone.
static char alternate[ALTERNATE];
static atomic_ulong arrived;
static atomic_int listening;

static void handler(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    char here;
    if (&here < alternate || &here >= alternate + ALTERNATE) fail("a handler on the wrong stack", (long)&here);
    if ((unsigned long)info->si_value.sival_ptr != atomic_load(&arrived)) fail("a signal out of order", (long)info->si_value.sival_ptr);
    atomic_fetch_add(&arrived, 1);
}

static void *signalled(void *argument) {
    stack_t stack = {.ss_sp = alternate, .ss_size = ALTERNATE}, now;
    sigaltstack(&stack, NULL);
    sigset_t blocked, mask, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
    pthread_sigmask(SIG_SETMASK, NULL, &before);
    unsigned long last = 0;
    atomic_store(&listening, 1);
    while (!ends()) {
        // In registers of all kinds while it may be stopped.
        double sum = 0;
        uint64_t product = 1;
        for (int i = 1; i <= 20000; i++) sum += i * 0.5, product = product * 6364136223846793005ull + (uint64_t)i;
        if (sum != 100005000.0) fail("floating point", (long)sum);
        static uint64_t known;
        if (known && product != known) fail("arithmetic", (long)product);
        known = product;
        pthread_sigmask(SIG_SETMASK, NULL, &mask);
        if (memcmp(&mask, &before, 8)) fail("the signal mask has changed", *(long *)&mask);
        sigaltstack(NULL, &now);
        if (now.ss_sp != alternate || now.ss_flags) fail("the alternate stack has changed", now.ss_flags);
        unsigned long count = atomic_load(&arrived);
        if (count != last) step(SIGNALLED);
        last = count;
    }
    return argument;
}

static void *signals(void *argument) {
    pthread_t whom = *(pthread_t *)argument;
    for (unsigned long next = 0; !ends(); next++) {
        union sigval value = {.sival_ptr = (void *)next};
        if (pthread_sigqueue(whom, SIGRTMIN, value)) fail("pthread_sigqueue", (long)next);
        uint64_t start = now_us();
        // Others need the processor too.
        for (struct timespec t = {0, 1000000}; atomic_load(&arrived) <= next; nanosleep(&t, NULL))
            if (now_us() - start > 30000000) {
                fail("a signal did not arrive", (long)next);
                return NULL;
            }
        step(SIGNALS);
    }
    return NULL;
}

// From so deep that the library needs more room for the stack than a thread has to begin with.
static int __attribute__((noinline)) deep(int frames) {
    if (frames) {
        int below = deep(frames - 1);
        __asm__ volatile("" : "+r"(below)); // else the compiler makes a loop of it
        return below + 1;
    }
    char *block = malloc(200);
    memset(block, 5, 200);
    free(block);
    return 0;
}

static void *short_lived(void *argument) {
    char *block = malloc(300);
    memset(block, 3, 300);
    free(block);
    return argument;
}

// The main thread: threads and processes that come and go.
static void starts_others(void) {
    volatile int frames = 200;
    if (deep(frames) != 200) fail("a deep call", 200);
    pthread_t thread;
    void *value = NULL;
    if (pthread_create(&thread, NULL, short_lived, shared) || pthread_join(thread, &value) || value != shared) fail("a thread", errno);
    pid_t child = fork();
    if (child == 0) {
        char *block = malloc(5000);
        memset(block, 4, 5000);
        free(block);
        _exit(7);
    }
    int status = 0;
    pid_t got = waitpid(child, &status, 0);
    if (child < 0 || got != child || !WIFEXITED(status) || WEXITSTATUS(status) != 7) fail("a child", status);
}

// Stacks and arenas are as large as they will be before anybody looks.
static void __attribute__((noinline)) deepen(void) {
    volatile char room[512 * 1024];
    for (size_t i = 0; i < sizeof room; i += 4096) room[i] = 1;
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    int file = open(argv[1], O_RDWR);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || shared == MAP_FAILED) return 2;
    close(file);
    mallopt(M_ARENA_MAX, 4);
    mallopt(M_TOP_PAD, 8 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
    mallopt(M_MMAP_THRESHOLD, 1 << 25);
    deepen();
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    sigaction(SIGRTMIN, &action, NULL);
    int silent[2], talk[2];
    if (pipe(silent) || pipe(talk)) return 2;
    pthread_t thread[THREADS - 1];
    for (long n = 0; n < ALLOCATORS; n++) pthread_create(&thread[n], NULL, allocates, (void *)n);
    pthread_create(&thread[SLEEPS], NULL, sleeps, NULL);
    pthread_create(&thread[POLLS], NULL, polls, &silent[0]);
    pthread_create(&thread[READS], NULL, reads, &talk[0]);
    pthread_create(&thread[WRITES], NULL, writes, &talk[1]);
    pthread_create(&thread[EPOLLS], NULL, epolls, &silent[0]);
    pthread_create(&thread[SIGNALLED], NULL, signalled, NULL);
    while (!atomic_load(&listening)) usleep(1000);
    pthread_create(&thread[SIGNALS], NULL, signals, &thread[SIGNALLED]);
    for (int n = 0; n < 20; n++) starts_others();
    atomic_store(&shared->threads, THREADS);
    sigset_t mask, before;
    sigprocmask(SIG_SETMASK, NULL, &before);
    while (!ends()) {
        int still = atomic_load(&shared->order) == STILL;
        if (!still) starts_others();
        atomic_store(&shared->still, (unsigned long)still);
        struct timespec t = {0, 3000000};
        errno = 77;
        if (nanosleep(&t, NULL) || errno != 77) fail("the main thread's nanosleep", errno);
        sigprocmask(SIG_SETMASK, NULL, &mask);
        if (memcmp(&mask, &before, 8)) fail("the main thread's signal mask has changed", *(long *)&mask);
        step(THREADS - 1);
    }
    for (int n = 0; n < THREADS - 1; n++) pthread_join(thread[n], NULL);
    return atomic_load(&shared->failures) ? 1 : 0;
}
