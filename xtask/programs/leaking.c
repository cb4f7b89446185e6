// leaking FILE RATE HELD LEAK: RATE allocations a second (fewer if it cannot) of 1 KiB on average from sixteen places, HELD blocks of each at
// a time, released in random order; and beside them LEAK bytes a second, in blocks of 1000 bytes that are written to and lost. In FILE (mapped
// shared) it notes 64-bit words: its allocations, the nanoseconds of processor time so far, and the bytes it has lost.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PLACES = 16, MOST_HELD = 4096, LOST_BLOCK = 1000, BATCH = 1000 };

struct notes {
    uint64_t allocations, cpu_ns, lost;
};

static char *held[PLACES][MOST_HELD];
static unsigned most_held;
static uint64_t random_state = 88172645463325252ull;
static volatile uint64_t sink;

static uint64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static uint64_t draw(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

#define PLACE(N) \
    __attribute__((noinline)) static char *place_##N(size_t size) { \
        char *block = malloc(size); \
        block[0] = N; /* and no jump in the place of the call */ \
        return block; \
    }
PLACE(0) PLACE(1) PLACE(2) PLACE(3) PLACE(4) PLACE(5) PLACE(6) PLACE(7)
PLACE(8) PLACE(9) PLACE(10) PLACE(11) PLACE(12) PLACE(13) PLACE(14) PLACE(15)
static char *(*const places[PLACES])(size_t) = {place_0, place_1, place_2,  place_3,  place_4,  place_5,  place_6,  place_7,
                                                place_8, place_9, place_10, place_11, place_12, place_13, place_14, place_15};

static void turn_over(void) {
    const uint64_t drawn = draw();
    const unsigned place = drawn % PLACES, which = drawn / PLACES % most_held;
    free(held[place][which]);
    held[place][which] = places[place](16 + (drawn >> 32) % 2000);
}

__attribute__((noinline)) static void leak_here(void) {
    char *block = malloc(LOST_BLOCK);
    memset(block, 1, LOST_BLOCK);
    sink += (uint64_t)block;
}

int main(int argc, char **argv) {
    if (argc != 5 || atoi(argv[3]) < 1 || atoi(argv[3]) > MOST_HELD) return fprintf(stderr, "usage: leaking FILE RATE HELD LEAK\n"), 2;
    const double rate = atof(argv[2]), leak = atof(argv[4]);
    most_held = atoi(argv[3]);
    const int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, sizeof(struct notes)) != 0) return perror(argv[1]), 1;
    volatile struct notes *notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (notes == MAP_FAILED) return perror("mmap"), 1;
    const uint64_t start = now(CLOCK_MONOTONIC);
    for (uint64_t made = 0, lost = 0;;) {
        const double seconds = (now(CLOCK_MONOTONIC) - start) / 1e9;
        const uint64_t due = seconds * rate, batch = due - made > BATCH ? BATCH : due - made;
        for (uint64_t i = 0; i < batch; ++i) turn_over();
        made += batch;
        for (; lost < seconds * leak; lost += LOST_BLOCK) leak_here();
        notes->cpu_ns = now(CLOCK_THREAD_CPUTIME_ID);
        notes->lost = lost;
        notes->allocations = made;
        if (batch < BATCH / 2) usleep(200); // what is due by then is less than a batch
    }
}
