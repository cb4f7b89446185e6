// 100,000 allocations by one of the ways of paths.h: each names the work a verified shadow stack may do per allocation.
#define O_NO_STACKS
#include "oracle.h"
#include "paths.h"

int main(int argc, char **argv) {
  paths(argc > 1 ? argv[1] : "same", 100000);
  return o_end(0);
}
