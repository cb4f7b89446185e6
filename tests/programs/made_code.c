// Opens the C++ library given, and libgcc_s with it, long after start, in a scope of its own; exceptions must pass through code
// that the library makes at run time and registers with libgcc.
#define O_NO_STACKS // backtrace(3) would load libgcc_s at the start
#define O_NO_HASH
#include "oracle.h"

int main(int argc, char **argv) {
  O_CHECK(argc > 1);
  O_CHECK(!dlopen("libgcc_s.so.1", RTLD_NOW | RTLD_NOLOAD)); // else this program proves nothing
  void *p = o_malloc(10);
  void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) o_fail(dlerror(), __LINE__);
  int (*run)(void) = (int (*)(void))dlsym(library, "throw_through_made_code");
  O_CHECK(run);
  int caught = run();
  o_say("caught %d\n", caught);
  O_CHECK(caught == 100);
  o_free(p);
  return o_end(0);
}
