/* ARGV[1] threads that allocate and free, all the time ("busy") or for a moment every millisecond ("idle"). Each watches the clock: the
   longest time it was not there. Prints "ready"; after each line of input the longest gap of all since the line before, in microseconds. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int idle;
static unsigned round_now;
static long longest;

static long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000L + t.tv_nsec; }
static void note(long gap) {
    long seen = __atomic_load_n(&longest, __ATOMIC_RELAXED);
    while (gap > seen && !__atomic_compare_exchange_n(&longest, &seen, gap, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}
static void *body(void *argument) {
    (void)argument;
    unsigned seen = 0;
    long last = now();
    for (;;) {
        unsigned round = __atomic_load_n(&round_now, __ATOMIC_RELAXED);
        long meant = 0;
        if (idle) { struct timespec t = {0, meant = 1000000}; clock_nanosleep(CLOCK_MONOTONIC, 0, &t, 0); }
        for (int i = 0; i < 20; i++) { char *p = malloc(40 + i * 8); *(volatile char *)p = 1; free(p); }
        long at = now();
        if (round == seen) note(at - last - meant);
        seen = round;
        last = at;
    }
}
int main(int count, char **arguments) {
    long n = count > 1 ? atol(arguments[1]) : 1;
    idle = count > 2 && !strcmp(arguments[2], "idle");
    for (long i = 0; i < n; i++) { pthread_t t; pthread_create(&t, 0, body, 0); }
    printf("ready\n"); fflush(stdout);
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        long gap = __atomic_exchange_n(&longest, 0, __ATOMIC_RELAXED);
        __atomic_add_fetch(&round_now, 1, __ATOMIC_RELAXED);
        printf("%ld\n", gap / 1000); fflush(stdout);
    }
    return 0;
}
