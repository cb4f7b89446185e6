// Allocates before, during and after an attach; `attached CONTROL`, where the last letter in the file CONTROL is an order. None or g: go
// on, f: free a block from before each round, e: exit, x: exec of a program that sleeps, t: exec of one that ends at once, s: a bad access,
// v: wait for a child between vfork and exec until there is another order. It prints "ready" when it waits for the first time.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>
#include <time.h>
#include <sys/wait.h>

static char order(const char *path) {
    char text[64];
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 'g';
    ssize_t got = read(fd, text, sizeof text);
    close(fd);
    return got > 0 ? text[got - 1] : 'g';
}

__attribute__((noinline)) void *keep_here(size_t n) { char *p = malloc(n); memset(p, 1, n); return p; }
__attribute__((noinline)) void *churn_here(size_t n) { char *p = malloc(n); memset(p, 2, n); return p; }

static void *old[64];

int main(int argc, char **argv) {
    const char *control = argv[1];
    if (argc < 2) return 2;
    for (int i = 0; i < 64; i++) old[i] = keep_here(1 << 16);
    printf("ready\n");
    fflush(stdout);
    unsigned long kept = 0, freed = 0, round = 0;
    for (;; round++) {
        void *blocks[16];
        for (int i = 0; i < 16; i++) blocks[i] = churn_here(100 + i);
        for (int i = 0; i < 16; i++) {
            if (((char *)blocks[i])[99] != 2) return 99;
            free(blocks[i]);
        }
        if (kept < 20000 && round % 64 == 0) { keep_here(4321); kept++; }
        char now = order(control);
        if (now == 'f' && freed < 64) free(old[freed++]);
        if (now == 'e') return 7;
        if (now == 's') *(volatile int *)0 = 1;
        if (now == 'x') execl("/bin/sleep", "sleep", "1", (char *)0);
        if (now == 't') execl("/bin/true", "true", (char *)0);
        struct timespec nap = {0, 200000};
        if (now == 'v') {
            pid_t child = vfork();
            if (child == 0) {
                while (order(control) == 'v') nanosleep(&nap, 0);
                _exit(0);
            }
            int status;
            if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 98;
        }
        nanosleep(&nap, 0);
    }
}
