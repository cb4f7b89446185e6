// Four threads allocate, grow and free at random, beside blocks that they keep, until nobody reads their orders any more.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 4, SLOTS = 2000, KEPT = 1000 };
static void *kept[THREADS][KEPT];
static pthread_barrier_t barrier;

static void *work(void *argument) {
    long me = (long)argument;
    unsigned long random = 88172645463325252ul + me;
    void **slots = calloc(SLOTS, sizeof *slots);
    for (int i = 0; i < KEPT; i++) kept[me][i] = malloc(100);
    pthread_barrier_wait(&barrier);
    for (;;) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        void **slot = &slots[random % SLOTS];
        size_t size = 1 + (random >> 20) % ((random >> 50) % 64 ? 3000 : 200000);
        switch ((random >> 40) % 3) {
        case 0: free(*slot), *slot = 0; break;
        case 1: *slot = realloc(*slot, size); break;
        case 2: free(*slot), *slot = malloc(size); break;
        }
        if (*slot) memset(*slot, (int)random, size < 64 ? size : 64);
    }
}

int main(void) {
    pthread_t thread;
    char order;
    pthread_barrier_init(&barrier, 0, THREADS + 1);
    for (long i = 0; i < THREADS; i++) pthread_create(&thread, 0, work, (void *)i);
    pthread_barrier_wait(&barrier);
    if (write(1, "wild\n", 5) != 5) return 1;
    return (int)read(0, &order, 1);
}
