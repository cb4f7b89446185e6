// Threads that allocate and check what they own all along. Ends when its input does; prints the operations done.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 4, BLOCKS = 64 };
static atomic_int stop;
static atomic_ulong done, wrong;

// A pool of the program's own, for --hook.
static char pool[1 << 16];
static atomic_ulong taken;
__attribute__((noinline)) void *pool_get(unsigned long size) { return pool + (atomic_fetch_add(&taken, size) & 0xff00); }
__attribute__((noinline)) void pool_put(void *block) { *(volatile char *)block = 0; atomic_fetch_add(&taken, 1); }
// Never called: a test changes its code.
__attribute__((noinline, used)) void *pool_spare(unsigned long size) { return pool + (size & 0xff); }

static void *work(void *arg) {
    unsigned long seed = (unsigned long)arg * 7919 + 1;
    unsigned char *block[BLOCKS] = {0};
    size_t size[BLOCKS] = {0};
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        seed = seed * 6364136223846793005ul + 1442695040888963407ul;
        unsigned at = (seed >> 33) % BLOCKS;
        size_t want = (seed >> 40) % 3000 + 1;
        unsigned char mark = (unsigned char)(at * 31 + 7);
        if (block[at]) {
            for (size_t i = 0; i < size[at]; i += 61)
                if (block[at][i] != mark) atomic_fetch_add(&wrong, 1);
            if (seed & 1) {
                block[at] = realloc(block[at], want);
            } else {
                free(block[at]);
                block[at] = seed & 2 ? calloc(1, want) : malloc(want);
            }
        } else {
            block[at] = seed & 2 ? aligned_alloc(64, (want + 63) / 64 * 64) : malloc(want);
        }
        memset(block[at], mark, size[at] = want);
        pool_put(pool_get(want));
        atomic_fetch_add_explicit(&done, 1, memory_order_relaxed);
    }
    for (int at = 0; at < BLOCKS; at++) free(block[at]);
    return 0;
}

#ifdef HANDLES_SIGNALS
#include <signal.h>
static void nothing(int signal) { (void)signal; }
#endif

int main(void) {
#ifdef HANDLES_SIGNALS
    signal(SIGUSR1, nothing);
#endif
    pthread_t thread[THREADS];
    for (long n = 0; n < THREADS; n++) pthread_create(&thread[n], 0, work, (void *)n);
    char byte;
    write(1, "r", 1);
    while (read(0, &byte, 1) == 1) {
        // A byte asks whether all threads go on.
        unsigned long before = atomic_load(&done);
        while (atomic_load(&done) < before + 1000) usleep(100);
        write(1, "y", 1);
    }
    atomic_store(&stop, 1);
    for (int n = 0; n < THREADS; n++) pthread_join(thread[n], 0);
    printf("wrong=%lu\n", atomic_load(&wrong));
    return atomic_load(&wrong) != 0;
}
