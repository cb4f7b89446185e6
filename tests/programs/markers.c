// Markers set by the program through the profiler's exported function, which it must also do without.
#include "oracle.h"

extern void memory_profiler_set_marker(uint32_t) __attribute__((weak));

int main(void) {
  void (*found)(uint32_t) = (void (*)(uint32_t))dlsym(RTLD_DEFAULT, "memory_profiler_set_marker");
  O_CHECK(!found == !memory_profiler_set_marker);
  for (uint32_t i = 1; i <= 10; i++) {
    if (found) { found(i * 1000); o_note(O_MARKER, NULL, i * 1000, NULL); }
    void *p = o_malloc(i);
    o_free(p);
  }
  o_fact(0, found != NULL);
  return o_end(0);
}
