// Four threads and the main one allocate blocks of known sizes when told to, and then stand still.
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 4 };
static pthread_barrier_t barrier;
static void *small[THREADS][1000], *middle[THREADS][300], *large[THREADS][50], *own[3];

static void *work(void *argument) {
    long me = (long)argument;
    free(malloc(40)); // its arena and its cache are there from now on
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < 1000; i++) memset(small[me][i] = malloc(100), 0x5a, 100);
    for (int i = 0; i < 300; i++) memset(middle[me][i] = malloc(2000), 0x5a, 2000);
    for (int i = 0; i < 50; i++) memset(large[me][i] = malloc(20000), 0x5a, 20000);
    for (int i = 0; i < 300; i += 2) free(middle[me][i]);
    for (int i = 0; i < 1000; i += 2) free(small[me][i]);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return 0;
}

static void say(const char *text) {
    if (write(1, text, strlen(text)) < 0) _exit(1);
}

static void wait_for_order(void) {
    char order;
    if (read(0, &order, 1) != 1) _exit(0);
}

int main(void) {
    pthread_t threads[THREADS];
    pthread_attr_t attributes;
    char line[200];
    free(malloc(40));
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 << 10);
    pthread_barrier_init(&barrier, 0, THREADS + 1);
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], &attributes, work, (void *)i);
    pthread_barrier_wait(&barrier);
    say("empty\n");
    wait_for_order();
    for (int i = 0; i < 3; i++) memset(own[i] = malloc(1 << 20), 0x5a, 100);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    struct mallinfo2 info = mallinfo2();
    snprintf(line, sizeof line, "%zu %zu %zu %zu %zu\n", info.arena, info.fordblks, info.fsmblks, info.hblks, info.hblkhd);
    say(line);
    wait_for_order();
    return 0;
}
