// Children that come one after the other, and release nothing: each ends with all it has made. "leaves SECONDS".
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#define SITE __attribute__((noinline))

static char *volatile kept[200];

SITE void keeps(int at) { kept[at] = malloc(2000), kept[at][0] = 1; __asm__ volatile(""); }

int main(int count, char **words) {
  if (count < 2) return 2;
  struct timespec begun, time;
  clock_gettime(CLOCK_MONOTONIC, &begun);
  do {
    pid_t child = fork();
    if (child < 0) return 3;
    if (!child) {
      // A tracer that follows children has time to.
      usleep(150000);
      for (int at = 0; at < 200; at++) keeps(at), usleep(100);
      _exit(0);
    }
    int status;
    if (waitpid(child, &status, 0) != child || status) return 4;
    clock_gettime(CLOCK_MONOTONIC, &time);
  } while (time.tv_sec - begun.tv_sec < atoi(words[1]));
  return 0;
}
