/* Sleeps in epoll_wait again and again, on a processor where it hardly gets its turn: it is idle by policy, and two others spin there.
   Prints "ready"; ends with its input, with 1 if a call returned anything but 0. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>
#include <poll.h>
int main(void) {
    cpu_set_t one; CPU_ZERO(&one); CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
    for (int i = 0; i < 2; i++)
        if (!fork()) { prctl(PR_SET_PDEATHSIG, SIGKILL); for (;;) {} }
    struct sched_param none = {0};
    sched_setscheduler(0, SCHED_IDLE, &none);
    int quiet = epoll_create1(0), wrong = 0;
    printf("ready\n"); fflush(stdout);
    for (;;) {
        struct epoll_event e;
        int result = epoll_wait(quiet, &e, 1, 150);
        if (result) { printf("%d %d\n", result, errno); wrong = 1; }
        struct pollfd input = {0, POLLIN, 0};
        if (poll(&input, 1, 0) > 0) return wrong;
    }
}
