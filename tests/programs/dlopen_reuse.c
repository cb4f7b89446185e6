// Loads library A, leaks through it, unloads it, loads B where A was, leaks through B: the same addresses now mean other
// functions. Arguments: the paths of A and B.
#include "oracle.h"

static uint64_t base_of[2][64];

struct text { uintptr_t inside; uint64_t lo, hi; };

static int find_text(struct dl_phdr_info *info, size_t size, void *arg) {
  (void)size;
  struct text *t = arg;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
    uintptr_t lo = info->dlpi_addr + ph->p_vaddr;
    if (ph->p_type == PT_LOAD && ph->p_flags & PF_X && t->inside >= lo && t->inside < lo + ph->p_memsz) t->lo = lo, t->hi = lo + ph->p_memsz;
  }
  return 0;
}

// Notes of what the library did carry no stack: they are taken one frame above the allocating one.
static uintptr_t use(const char *path, const char *symbol, size_t n) {
  void *lib = dlopen(path, RTLD_NOW);
  O_CHECK(lib);
  void *(*leak)(size_t) = (void *(*)(size_t))dlsym(lib, symbol);
  O_CHECK(leak);
  struct text t = {(uintptr_t)leak, 0, 0};
  dl_iterate_phdr(find_text, &t);
  O_CHECK(t.lo);
  o_own(t.lo, t.hi);
  int stacks = o_stacks;
  o_stacks = 0;
  for (int i = 0; i < 3; i++) {
    void *p = leak(n + (size_t)i);
    o_note(O_MALLOC, p, n + (size_t)i, NULL);
  }
  o_stacks = stacks;
  O_CHECK(!dlclose(lib));
  O_CHECK(dlopen(path, RTLD_NOW | RTLD_NOLOAD) == NULL);
  return (uintptr_t)leak;
}

int main(int argc, char **argv) {
  O_CHECK(argc == 3);
  uint64_t same = 0;
  for (int round = 0; round < 20; round++) {
    base_of[0][round] = use(argv[1], "a_outer", 1000);
    base_of[1][round] = use(argv[2], "b_outer", 2000);
    same += base_of[0][round] == base_of[1][round];
    void *p = o_malloc(50);
    o_free(p);
  }
  O_CHECK(same > 0); // no reuse, no test
  o_fact(0, same);
  return o_end(0);
}
