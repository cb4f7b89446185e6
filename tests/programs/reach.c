// reach [HOW]: makes blocks that it has pointers to at its end in every way that there is, and some that it has none to; prints of each where
// it is ("kept WHICH ADDRESS", "lost WHICH ADDRESS"; the address with all bits flipped, so that it is in no buffer), and ends: by `return`,
// or as HOW says: `exit` from another thread, `_exit`, `killed`, `many` (with so much memory that it takes a while to copy).
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct node {
    struct node *next;
    uint64_t number;
};

static void tell(const char *what, const char *which, const void *block) { printf("%s %s %lu\n", what, which, ~(uintptr_t)block); }

static struct node *volatile root;
static _Thread_local void *volatile of_thread;
static void *volatile inside;
static void **mapped;
static char **array;

static __attribute__((noinline)) struct node *list(const char *what, const char *which, int length) {
    struct node *first = NULL;
    for (int i = 0; i < length; ++i) {
        struct node *node = malloc(sizeof *node);
        *node = (struct node){first, i};
        tell(what, which, first = node);
    }
    return first;
}

static __attribute__((noinline)) void keep_some(void) {
    root = list("kept", "list", 20);
    char *block = malloc(1000);
    tell("kept", "interior", block);
    inside = block + 999;
    of_thread = malloc(24);
    tell("kept", "tls", of_thread);
    mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mapped[17] = malloc(24);
    tell("kept", "mapped", mapped[17]);
    array = calloc(100000, sizeof *array); // large: in a mapping of its own
    tell("kept", "array", array);
    for (int i = 0; i < 5; ++i) {
        array[i * 20000] = malloc(40);
        tell("kept", "elements", array[i * 20000]);
    }
}

static __attribute__((noinline)) void lose_some(void) {
    list("lost", "list", 20);
    // Two that point to each other.
    void **one = malloc(sizeof *one), **two = malloc(sizeof *two);
    *one = two;
    *two = one;
    tell("lost", "ring", one);
    tell("lost", "ring", two);
    // A block that only a released one has the address of. The words that free writes itself are at its start.
    void **released = malloc(160);
    released[10] = malloc(48);
    tell("lost", "by released", released[10]);
    free(released);
    // The last of something: no pointer to behind it is one into it.
    char *large = malloc(300000);
    tell("lost", "large", large);
}

// What the calls before have left on the stack and in registers is no pointer of the program's.
static __attribute__((noinline)) void wipe(void) {
    char space[64 << 10];
    memset(space, 0, sizeof space);
    __asm__ volatile("" : : "r"(space) : "memory");
}

static pthread_barrier_t ready;

static void *sleeper(void *unused) {
    void *volatile on_stack = malloc(72);
    tell("kept", "other stack", on_stack);
    of_thread = malloc(24);
    tell("kept", "other tls", of_thread);
    pthread_barrier_wait(&ready);
    for (;;) pause();
    return on_stack ? unused : NULL;
}

static void *ends(void *unused) {
    exit(7);
    return unused;
}

int main(int argc, char **argv) {
    const char *how = argc > 1 ? argv[1] : "return";
    setvbuf(stdout, NULL, _IOLBF, 1024);
    pthread_barrier_init(&ready, NULL, 2);
    keep_some();
    lose_some();
    wipe();
    void *volatile on_stack = NULL;
    if (!strcmp(how, "exit")) tell("kept", "stack", on_stack = malloc(56)); // when it has returned, it has no stack
    pthread_t thread;
    pthread_create(&thread, NULL, sleeper, NULL);
    pthread_barrier_wait(&ready);
    if (!strcmp(how, "many"))
        for (int i = 0; i < 64; ++i) memset(malloc(16 << 20), i, 16 << 20);
    if (!strcmp(how, "exit")) {
        pthread_create(&thread, NULL, ends, NULL);
        for (;;) pause();
    }
    if (!strcmp(how, "_exit")) _exit(5);
    if (!strcmp(how, "killed")) raise(SIGTERM);
    return on_stack ? 4 : 3;
}
