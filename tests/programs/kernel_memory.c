// Makes the kernel hold memory, by orders on its standard input:
//   pipes N      N pipes with three pages of data in each
//   eventfds N, epolls N, timers N, sockets N (pairs)
//   memfd N      a memfd of N pages
//   close        closes all that it was told to open
//   end          ends
// Answers each line with "done LINE".
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

static int held[60000], count;
static char data[4096];

static void hold(int fd) {
  if (fd < 0 || count == 60000) {
    perror("open");
    exit(1);
  }
  held[count++] = fd;
}

static void fill(int fd, int pages) {
  for (int i = 0; i < pages; i++)
    if (write(fd, data, sizeof data) != sizeof data) exit(1);
}

int main(void) {
  static char line[100];
  struct rlimit limit = {60000, 60000};
  setrlimit(RLIMIT_NOFILE, &limit);
  setvbuf(stdout, NULL, _IOLBF, 4096);
  puts("ready");
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    char what[50] = "";
    int n = 0, pair[2];
    sscanf(line, "%49s %d", what, &n);
    if (!strcmp(what, "end")) return 0;
    if (!strcmp(what, "memfd")) {
      hold(memfd_create("held", 0));
      fill(held[count - 1], n);
      n = 0;
    }
    for (int i = 0; i < n; i++) {
      if (!strcmp(what, "pipes")) {
        if (pipe(pair)) return 1;
        hold(pair[0]), hold(pair[1]);
        fill(pair[1], 3);
      } else if (!strcmp(what, "sockets")) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 1;
        hold(pair[0]), hold(pair[1]);
      } else if (!strcmp(what, "eventfds")) {
        hold(eventfd(0, 0));
      } else if (!strcmp(what, "epolls")) {
        hold(epoll_create1(0));
      } else if (!strcmp(what, "timers")) {
        hold(timerfd_create(CLOCK_MONOTONIC, 0));
      }
    }
    if (!strcmp(what, "close"))
      while (count > 0) close(held[--count]);
    printf("done %s\n", line);
  }
  return 0;
}
