/* Calls epoll_wait with a short timeout again and again, with nothing in between. Prints "ready"; at the end of its input what was wrong
   (result, errno, microseconds), then how many calls it made. */
#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>
static int over;
static void *watch(void *argument) {
    char c;
    while (read(0, &c, 1) > 0) {}
    __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
    return argument;
}
static long now_us(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000 + t.tv_nsec / 1000; }
int main(void) {
    int quiet = epoll_create1(0);
    long calls = 0;
    pthread_t watcher;
    pthread_create(&watcher, 0, watch, 0);
    printf("ready\n"); fflush(stdout);
    for (; !__atomic_load_n(&over, __ATOMIC_ACQUIRE); calls++) {
        struct epoll_event e;
        long begin = now_us();
        long result = syscall(SYS_epoll_wait, quiet, &e, 1, 1);
        long took = now_us() - begin;
        if (result || took < 1000) printf("wrong %ld %d %ld\n", result, errno, took);
    }
    printf("calls %ld\n", calls);
    return 0;
}
