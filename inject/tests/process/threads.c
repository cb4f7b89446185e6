/* ARGV[1] threads: one in four spins, the others sleep in poll. Prints "ready"; ends with its input. */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static void *body(void *argument) {
    volatile unsigned long n = 0;
    if ((long)argument % 4 == 0) for (;;) { n++; if (n % 100000 == 0) usleep(1000); }
    for (;;) poll(0, 0, 10000);
}
int main(int count, char **arguments) {
    long n = count > 1 ? atol(arguments[1]) : 4;
    for (long i = 1; i < n; i++) { pthread_t t; pthread_create(&t, 0, body, (void *)i); }
    printf("ready\n"); fflush(stdout);
    return getchar() == EOF ? 0 : 1;
}
