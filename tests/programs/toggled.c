// toggled TIMES HOW: three threads allocate and release while the first one switches the recording off and on TIMES times: by `signals`
// (SIGUSR1 and SIGUSR2 in turns), or by `calls` of memory_profiler_stop and _start. Each thread knows of most of its calls whether recording
// was on from before to after; prints, for each, how many allocations were surely recorded and of how many it cannot know.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WORKERS = 3, KEPT = 61 };

// Odd while it is switched. Every other pair is off.
static atomic_uint epoch;
static atomic_int over;

struct worker {
    pthread_t thread;
    size_t size;
    unsigned long sure, unsure, off;
};

static __attribute__((noinline)) void *allocate(size_t size) { return malloc(size); }

static void *work(void *argument) {
    struct worker *worker = argument;
    void *kept[KEPT] = {0};
    for (unsigned turn = 0; !over; ++turn) {
        free(kept[turn % KEPT]);
        const unsigned before = epoch;
        kept[turn % KEPT] = allocate(worker->size);
        const unsigned after = epoch;
        if (before != after || before % 2) ++worker->unsure;
        else if (before / 2 % 2) ++worker->off;
        else ++worker->sure;
    }
    for (int i = 0; i < KEPT; ++i) free(kept[i]);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const int times = atoi(argv[1]), signals = !strcmp(argv[2], "signals");
    void (*stop)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "memory_profiler_stop");
    void (*start)(void) = (void (*)(void))dlsym(RTLD_DEFAULT, "memory_profiler_start");
    if (!stop || !start) return 3;
    struct worker workers[WORKERS] = {0};
    for (int i = 0; i < WORKERS; ++i) {
        workers[i].size = 1000 + i;
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    }
    for (int i = 0; i < times; ++i) {
        ++epoch;
        if (signals) raise(i % 3 ? SIGUSR1 : SIGUSR2);
        else if (i % 2) start();
        else stop();
        ++epoch;
        if (i % 7 == 0) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    // The releases at the end are seen if it is on.
    over = 1;
    for (int i = 0; i < WORKERS; ++i) pthread_join(workers[i].thread, NULL);
    for (int i = 0; i < WORKERS; ++i) printf("%zu %lu %lu %lu\n", workers[i].size, workers[i].sure, workers[i].unsure, workers[i].off);
    return 0;
}
