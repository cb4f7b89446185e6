// Blocks made before main (preinit_array, constructors) and after it (atexit, destructors), freed across the border.
#include "oracle.h"

static void *early, *constructed, *at_exit;

static void preinit(int argc, char **argv, char **envp) {
  (void)argc, (void)argv;
  int stacks = o_stacks;
  o_stacks = 0; // before the libraries are initialised backtrace cannot load its unwinder
  o_init(envp);
  early = o_malloc(1001);
  o_stacks = stacks;
}
__attribute__((section(".preinit_array"), used)) static void (*preinit_entry)(int, char **, char **) = preinit;

__attribute__((constructor)) static void construct(void) {
  constructed = o_malloc(1002);
  early = o_realloc(early, 2001);
}

static void leave(void) {
  o_free(constructed);
  at_exit = o_malloc(1003);
}

__attribute__((destructor)) static void destruct(void) {
  o_free(at_exit);
  o_free(early);
  void *last = o_malloc(1004); // nobody frees this one
  memset(last, 1, 1004);
  o_fact(0, 1);
}

int main(void) {
  O_CHECK(early && constructed);
  atexit(leave);
  return o_end(3);
}
