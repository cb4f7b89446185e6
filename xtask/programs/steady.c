// steady FILE WHAT WORK_NS DEPTH: one thread that allocates by WHAT and releases, with WORK_NS of work between, in an endless loop at DEPTH
// calls (0: none), until it is ended. In FILE (mapped shared) it notes 64-bit words: its operations, the nanoseconds of processor time they
// took, and the longest time between two of its looks at the clock, which whoever watches may set back to 0.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { OPERATIONS_A_LOOK = 256, FRAME = 512, NS_A_NOTE = 20000000 };

struct notes {
    uint64_t operations, cpu_ns, longest_ns;
};

static volatile struct notes *notes;
static uint64_t work_rounds;
static volatile uint64_t sink;
static volatile int over;

static uint64_t now(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static void work(uint64_t rounds) {
    uint64_t x = sink | 1;
    for (uint64_t i = 0; i < rounds; ++i) x = x * 6364136223846793005ull + 1442695040888963407ull; // each waits for the one before
    sink = x;
}

static void *by_malloc(size_t size) { return malloc(size); }
static void *by_calloc(size_t size) { return calloc(1, size); }
static void *by_realloc(size_t size) { return realloc(NULL, size); }
static void *by_aligned_alloc(size_t size) { return aligned_alloc(64, size); }
static void *by_posix_memalign(size_t size) {
    void *block;
    return posix_memalign(&block, 64, size) == 0 ? block : NULL;
}

static void *(*const volatile ways[])(size_t) = {by_malloc, by_calloc, by_realloc, by_aligned_alloc, by_posix_memalign};
static const char *const names[] = {"malloc", "calloc", "realloc", "aligned_alloc", "posix_memalign"};

static __attribute__((noinline)) void loop(void *(*allocate)(size_t)) {
    uint64_t wall = now(CLOCK_MONOTONIC), noted = wall;
    for (unsigned turn = 0; !over; ++turn) {
        for (int i = 0; i < OPERATIONS_A_LOOK; ++i) {
            char *block = allocate(16 + (turn + i) % 16 * 24);
            block[0] = 1;
            __asm__ volatile("" : : "r"(block) : "memory");
            if (work_rounds) work(work_rounds);
            free(block);
        }
        uint64_t after = now(CLOCK_MONOTONIC);
        if (after - wall > notes->longest_ns) notes->longest_ns = after - wall;
        wall = after;
        if (after - noted > NS_A_NOTE) { // the other clock is a system call
            noted = after;
            notes->cpu_ns = now(CLOCK_THREAD_CPUTIME_ID);
            notes->operations = (turn + 1ull) * OPERATIONS_A_LOOK;
        }
    }
}

static __attribute__((noinline)) void deeper(long depth, void *(*allocate)(size_t)) {
    char frame[FRAME];
    memset(frame, depth, sizeof frame);
    __asm__ volatile("" : : "r"(frame) : "memory");
    if (depth > 0) deeper(depth - 1, allocate);
    else loop(allocate);
    __asm__ volatile("" : : "r"(frame) : "memory");
}

int main(int argc, char **argv) {
    unsigned way = 0;
    while (argc == 5 && way < 5 && strcmp(argv[2], names[way])) ++way;
    if (argc != 5 || way == 5) return fprintf(stderr, "usage: steady FILE WHAT WORK_NS DEPTH\n"), 2;
    const long work_ns = atol(argv[3]);
    const uint64_t rounds = 20000000, start = now(CLOCK_MONOTONIC);
    work(rounds);
    work_rounds = work_ns * rounds / (now(CLOCK_MONOTONIC) - start);
    const int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, sizeof *notes) != 0) return perror(argv[1]), 1;
    void *mapped = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) return perror("mmap"), 1;
    notes = mapped;
    deeper(atol(argv[4]), ways[way]);
}
