// gathers SECONDS: makes two blocks a turn, of which it keeps one in a list and loses the other.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct node {
    struct node *next;
    char name[88];
};

static struct node *volatile all;

static __attribute__((noinline)) void gathers(void) {
    struct node *node = malloc(sizeof *node);
    node->next = all;
    all = node;
}

static __attribute__((noinline)) void loses(void) {
    char *volatile block = malloc(96);
    block[0] = 1;
}

int main(int argc, char **argv) {
    const time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 8);
    for (unsigned turns = 0; time(NULL) < end; ++turns) {
        gathers();
        loses();
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return all == NULL;
}
