// Changes its mappings, leaves holes in its stack, starts threads, allocates from a library that it loads, takes all memory there is: as
// lines of its input say. Says "done LINE".
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what), _exit(1)))
enum { PAGE = 4096, UNTOUCHED = 3 * PAGE };

__attribute__((noinline)) static void map(void) {
  free(malloc(100));
  char *at = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED && !munmap(at, PAGE));
  char *moved = mremap(at + PAGE, 16 * PAGE, 512 * PAGE, MREMAP_MAYMOVE);
  CHECK(moved != MAP_FAILED && !munmap(moved, 512 * PAGE) && !munmap(at + 17 * PAGE, 47 * PAGE));
  CHECK(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
  free(malloc(4 << 20)); // a mapping of the allocator's
}

// Its frame spans pages that nothing has ever touched: the thread's stack was deeper nowhere before.
__attribute__((noinline)) static void over_a_hole(void) {
  volatile char room[UNTOUCHED];
  unsigned char pages[UNTOUCHED / PAGE];
  char *first = (char *)(((unsigned long)room + PAGE - 1) & ~(PAGE - 1ul));
  CHECK(!mincore(first, UNTOUCHED - 2 * PAGE, pages) && !(pages[0] & 1)); // else this shows nothing
  char *block = malloc(777);
  CHECK(block);
  block[0] = 1;
  CHECK(!mincore(first, UNTOUCHED - 2 * PAGE, pages) && !(pages[0] & 1));
}

static void *thread(void *what) {
  if (what) over_a_hole();
  char *block = malloc(888);
  CHECK(block);
  block[0] = 1;
  return NULL;
}

// The library's own allocator, which nobody else uses.
__attribute__((noinline)) static void by_allocator(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  CHECK(library);
  void *(*allocate)(size_t) = (void *(*)(size_t))dlsym(library, "malloc");
  CHECK(allocate && allocate != malloc);
  void *block = allocate(12345);
  CHECK(block);
  printf("block %p\n", block);
}

static void in_a_thread(void *what) {
  pthread_t other;
  CHECK(!pthread_create(&other, NULL, thread, what) && !pthread_join(other, NULL));
}

int main(void) {
  char line[4096];
  prctl(PR_SET_NAME, "changing");
  puts("ready"), fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    if (!strcmp(line, "map")) map();
    else if (!strncmp(line, "maps ", 5)) for (int n = atoi(line + 5); n > 0; n--) map();
    else if (!strcmp(line, "hole")) in_a_thread(line);
    else if (!strcmp(line, "thread")) in_a_thread(NULL);
    else if (!strncmp(line, "load ", 5)) by_allocator(line + 5);
    else if (!strcmp(line, "grow")) CHECK(sbrk(16 * PAGE) != (void *)-1);
    else if (!strcmp(line, "eat")) for (char *block;;) CHECK((block = malloc(1 << 20)) && memset(block, 1, 1 << 20));
    else if (!strcmp(line, "end")) return 0;
    else return 2;
    printf("done %s\n", line), fflush(stdout);
  }
  return 0;
}
