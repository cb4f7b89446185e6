// Where one library was when the program was attached to, another comes to lie, whose beginning is not the first one's.
//   elsewhere BIG SMALL: says "ready" with BIG loaded; at a line of input takes it out and loads SMALL into its place, which allocates 100
// blocks of 12345 bytes and keeps them. Says "done" and waits for the end of its input.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what), _exit(1)))
enum { PAGE = 4096, IN_A_ROW = 64 };

// The kernel puts a mapping into the highest gap that has room. Until one page after the other comes to lie below the last, there are others.
static void fill_gaps(void) {
  char *last = NULL;
  for (int row = 0; row < IN_A_ROW;) {
    char *page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    row = last && page + PAGE == last ? row + 1 : 0;
    last = page;
  }
}

static uintptr_t base(void *library) {
  struct link_map *map;
  CHECK(!dlinfo(library, RTLD_DI_LINKMAP, &map));
  return map->l_addr;
}

int main(int argc, char **argv) {
  CHECK(argc == 3);
  fill_gaps();
  void *big = dlopen(argv[1], RTLD_NOW);
  CHECK(big);
  uintptr_t before = base(big);
  char *room = dlsym(big, "room");
  CHECK(room && (uintptr_t)room > before);
  puts("ready"), fflush(stdout);
  CHECK(getchar() == '\n');
  CHECK(!dlclose(big));
  void *small = dlopen(argv[2], RTLD_NOW);
  CHECK(small);
  CHECK(base(small) > before && base(small) < (uintptr_t)room + (1 << 20)); // else this shows nothing
  void *(*allocate)(size_t) = (void *(*)(size_t))dlsym(small, "library_malloc");
  CHECK(allocate);
  for (int i = 0; i < 100; i++) CHECK(allocate(12345));
  puts("done"), fflush(stdout);
  while (getchar() != EOF) {}
  puts("unharmed");
  return 0;
}
