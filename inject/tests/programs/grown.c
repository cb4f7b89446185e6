// Makes libhound.so map memory by itself. Says `r`, answers each byte with `y` when it has done what WHAT says, and ends with its input.
//   deep: allocates in a recursion of 700 calls, and from 4096 places.   thread: has a new thread do the recursion.
//   fill: answers only; another thread allocates all the time.
// With musl and linked statically it has no code to return from signal handlers by.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLACE { void *p = malloc(24); *(volatile char *)p = 1; free(p); }
#define P4 PLACE PLACE PLACE PLACE
#define P16 P4 P4 P4 P4
#define P64 P16 P16 P16 P16
#define P256 P64 P64 P64 P64

static void __attribute__((noinline)) places(void) { P256 P256 P256 P256 P256 P256 P256 P256 }

static int __attribute__((noinline)) dive(int depth) {
    volatile int here = depth;
    if (!depth) { PLACE return 0; }
    return dive(depth - 1) + here - here;
}

static void *deep(void *unused) { dive(700); return unused; }
static void *endless(void *unused) { for (;;) PLACE return unused; }

int main(void) {
    const char *what = getenv("WHAT");
    if (!what) what = "";
    pthread_t thread;
#ifndef ALONE
    if (!strcmp(what, "fill")) pthread_create(&thread, 0, endless, 0);
#endif
    char byte;
    write(1, "r", 1);
    while (read(0, &byte, 1) == 1) {
        if (!strcmp(what, "deep")) { deep(0); places(); }
#ifndef ALONE
        if (!strcmp(what, "thread")) { pthread_create(&thread, 0, deep, 0); pthread_join(thread, 0); }
#endif
        for (int i = 0; i < 100; i++) PLACE
        void *p = realloc(calloc(2, 8), 64); // the whole family is there
        free(p);
        write(1, "y", 1);
    }
    write(1, "wrong=0\n", 8);
    return 0;
}
