// Puts a uprobe, as perf and eBPF tools do, at an offset of a file in one process: attach_uprobe PID FILE OFFSET.
// Says "holding" and holds it until it is killed. Exit status 77: this kernel has none.
#include <linux/perf_event.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
  FILE *f = fopen("/sys/bus/event_source/devices/uprobe/type", "re");
  unsigned type;
  if (argc != 4) return 2;
  if (!f || fscanf(f, "%u", &type) != 1) return 77;
  struct perf_event_attr about;
  memset(&about, 0, sizeof about);
  about.type = type;
  about.size = sizeof about;
  about.config1 = (uint64_t)(uintptr_t)argv[2];
  about.config2 = strtoull(argv[3], NULL, 0);
  long fd = syscall(SYS_perf_event_open, &about, atoi(argv[1]), -1, -1, PERF_FLAG_FD_CLOEXEC);
  if (fd < 0) return perror("perf_event_open"), 1;
  dprintf(1, "holding\n");
  for (;;) pause();
}
