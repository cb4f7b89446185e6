// Allocates a little and is there for so many seconds.
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
  for (int i = 0; i < 100; i++) *(volatile char *)malloc(100) = 1;
  sleep(argc > 1 ? (unsigned)atoi(argv[1]) : 0);
  return 0;
}
