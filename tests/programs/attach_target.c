// A program to attach to: it allocates when it is told to, by lines on its standard input, and notes what it does between them.
//   quiet          allocates without notes: what a profiler may see only while it is attached to something else
//   noted          allocates by every entry point, called directly and through pointers copied at the start, and notes each block
//   threads        the same from four new threads
//   old            frees blocks made before anybody could attach
//   libc           has libc allocate (strdup, getline, fopen, asprintf); tells the addresses
//   library PATH   opens a library and has it allocate; tells the address
//   everything C CPP  all that allocates, between two blocks of 77777 and 77778 bytes; opens the two libraries
//   children       makes children in every way that copies or shares its memory; they allocate, check and end
//   child NAME     makes a child that allocates until "children end", and then says by its status whether all was right
//   observe        prints descriptors and threads
//   end            checks its blocks and ends
// Answers each line with "done LINE". Every phase's range of notes is told in the facts: [0] how many phases, [2+2k] first, [3+2k] end.
// Facts [40..] are addresses that libc or a library returned: [39] tells how many.
//
// Built with and without libc's dynamic linking and other allocators: FAMILY is a prefix of the allocator's names (`_rjem_`).
#define O_CAP (1u << 16)
#define O_NO_HASH
#if defined STATIC || !defined __GLIBC__ || defined SECTIONED
extern char __start_oracle_text[], __stop_oracle_text[];
#define O_OWN_START __start_oracle_text
#define O_OWN_END __stop_oracle_text
#endif
#include "oracle.h"
#include <spawn.h>

// All that allocates for the record stands in a section of its own: a static program's text holds libc, too.
#define OWN __attribute__((section("oracle_text"), noinline))
#define HELD 400

static void *held[HELD], *old[64];
static uint64_t phases, told;

static void *(*volatile copied_malloc)(size_t) = malloc;
static void *(*volatile copied_realloc)(void *, size_t) = realloc;
static void (*volatile copied_free)(void *) = free;

static void tell(void *address) {
  o_fact(40 + (int)told % 24, (uint64_t)(uintptr_t)address);
  o_fact(39, ++told);
}

OWN static void every_entry_point(unsigned from) {
  unsigned state = from * 2654435761u + 1;
  static __thread void *kept[HELD]; // not on the stack, whose copies are to be small
  for (int i = 0; i < 1500; i++) {
    state = state * 1103515245u + 12345u;
    size_t n = 1 + (state >> 8) % 900;
    void **at = &kept[(state >> 20) % HELD];
    if (*at) {
      if (i % 3) {
        o_free(*at);
        *at = NULL;
        continue;
      }
      *at = o_realloc(*at, n * 3);
      continue;
    }
    switch ((state >> 4) % 9) {
    case 0: *at = o_calloc(n / 8 + 1, 8); break;
    case 1: *at = o_realloc(NULL, n); break;
#if defined __GLIBC__ && !defined NO_REALLOCARRAY
    case 2: *at = o_reallocarray(NULL, 3, n); break;
    case 3: *at = n % 2 ? o_valloc(n) : o_pvalloc(n); break;
#endif
    case 4: O_CHECK(!o_posix_memalign(at, 64, n)); break;
    case 5: *at = o_memalign(128, n); break;
    case 6: *at = o_aligned_alloc(32, (n + 31) / 32 * 32); break;
    default: *at = o_malloc(n); break;
    }
    O_CHECK(*at);
    memset(*at, (int)(n & 0xff), n);
  }
  for (int i = 0; i < HELD; i++) {
    o_free(kept[i]);
    kept[i] = NULL;
  }
}

OWN static void by_copied_pointers(void) {
  for (size_t i = 0; i < 100; i++) {
    size_t n = 10 + i;
    void *p = copied_malloc(n);
    o_note(O_MALLOC, p, n, NULL);
    uintptr_t before = (uintptr_t)p;
    p = copied_realloc(p, 3 * n);
    o_note(O_REALLOC, p, 3 * n, before);
    before = (uintptr_t)p;
    copied_free(p);
    o_note(O_FREE, before, 0, NULL);
  }
}

OWN static void hold_some(void) {
  for (int i = 0; i < HELD; i++) {
    if (held[i]) {
      for (size_t k = 0; k < 100; k++) O_CHECK(((unsigned char *)held[i])[k] == (unsigned char)(i + (int)k));
      o_free(held[i]);
    }
    held[i] = o_malloc(100 + (size_t)i);
    for (size_t k = 0; k < 100; k++) ((unsigned char *)held[i])[k] = (unsigned char)(i + (int)k);
  }
}

OWN static void free_old(void) {
  for (int i = 0; i < 64; i++) {
    o_free(old[i]);
    old[i] = NULL;
  }
}

OWN static void *noted_thread(void *number) {
  every_entry_point((unsigned)(uintptr_t)number);
  return NULL;
}

static void threads(void) {
  pthread_t t[4];
  for (uintptr_t i = 0; i < 4; i++) O_CHECK(!pthread_create(&t[i], NULL, noted_thread, (void *)(i + 100)));
  for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
}

// Unseen by the notes, and small enough not to be mistaken for noted blocks.
static void quiet(void) {
  void *p[50];
  for (int k = 0; k < 200; k++) {
    for (int i = 0; i < 50; i++) p[i] = malloc((size_t)(i + 1));
    for (int i = 0; i < 50; i++) free(p[i]);
  }
}

__attribute__((noinline)) static void by_libc(void) {
  char *text = strdup("a string that libc copies");
  tell(text);
  char *line = NULL, *made = NULL;
  size_t room = 0;
  FILE *f = fopen("/dev/zero", "re");
  if (f) tell(f);
  FILE *words = fmemopen((char[]){"one line\nanother\n"}, 17, "r");
  O_CHECK(words && getline(&line, &room, words) == 9);
  tell(line);
  O_CHECK(asprintf(&made, "%s and %d", text, 4711) > 20);
  tell(made);
  fclose(words);
  if (f) fclose(f);
  free(line);
  free(made);
  free(text);
}

#ifndef STATIC
__attribute__((noinline)) static void by_library(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  O_CHECK(library);
  void *(*make)(size_t) = (void *(*)(size_t))dlsym(library, "library_malloc");
  void (*unmake)(void *) = (void (*)(void *))dlsym(library, "library_free");
  uint64_t (*work)(uint64_t) = (uint64_t (*)(uint64_t))dlsym(library, "library_work");
  O_CHECK(make && unmake && work && work(10) == 55);
  void *p = make(12345);
  tell(p);
  unmake(p);
}
#endif

#ifndef STATIC
static void *short_thread(void *bytes) {
  char *block = malloc((size_t)bytes);
  block[0] = 1;
  return block;
}

__attribute__((noinline)) static void mappings(void) {
  char *at = mmap(NULL, 3 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  O_CHECK(at != MAP_FAILED);
  char *moved = mremap(at, 3 << 12, 6 << 12, MREMAP_MAYMOVE);
  O_CHECK(moved != MAP_FAILED && !munmap(moved, 6 << 12));
  O_CHECK(mmap64(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
}

// Each entry point once, then libc, libraries, threads, mappings. Always the same sequence: compared with a launch under hound.
__attribute__((noinline)) static void everything(char *paths) {
  char *second = strchr(paths, ' ');
  O_CHECK(second);
  *second++ = 0;
  void *volatile p = malloc(77777);
  free(p);
  p = calloc(3, 100);
  p = realloc(p, 200000); // becomes a mapping of its own
  p = realloc(p, 500000);
  p = reallocarray(p, 7, 9);
  free(p);
  free(NULL);
  void *out = NULL;
  O_CHECK(!posix_memalign(&out, 64, 100));
  free(out);
  free(p = aligned_alloc(32, 96));
  free(p = memalign(128, 10));
  free(p = valloc(10));
#ifdef __GLIBC__
  free(p = pvalloc(10));
#endif
  p = copied_malloc(4321);
  copied_free(copied_realloc(p, 8765));
  by_libc();
  by_library(paths);
  by_library(second);
  for (size_t i = 1; i < 4; i++) {
    pthread_t t;
    void *block;
    O_CHECK(!pthread_create(&t, NULL, short_thread, (void *)(i * 1000)));
    O_CHECK(!pthread_join(t, &block));
    free(block);
  }
  mappings();
  p = malloc(77778);
  free(p);
}
#endif

// What a child does: a mistake in a hook's state, or a patch half there, would show here.
static int child_work(unsigned rounds) {
  unsigned char *kept[64] = {0};
  for (unsigned i = 0; i < rounds; i++) {
    unsigned at = i * 7 % 64;
    size_t n = 1 + i % 500;
    if (kept[at] && *kept[at] != (unsigned char)at) return 1;
    free(kept[at]);
    kept[at] = i % 3 ? malloc(n) : calloc(n, 2);
    if (!kept[at]) return 2;
    *kept[at] = (unsigned char)at;
  }
  for (int i = 0; i < 64; i++) free(kept[i]);
  return 0;
}

static void await_child(pid_t child, int wanted) {
  int status = -1;
  O_CHECK(child > 0 && waitpid(child, &status, 0) == child);
  O_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == wanted);
}

static void children(void) {
  for (int i = 0; i < 10; i++) {
    pid_t child = fork();
    if (!child) _exit(child_work(2000) ? 99 : 41);
    await_child(child, 41);
    // Without libc's knowledge: as container runtimes do.
    child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (!child) syscall(SYS_exit_group, child_work(2000) ? 99 : 42);
    await_child(child, 42);
    child = vfork();
    if (!child) _exit(43);
    await_child(child, 43);
    child = vfork();
    if (!child) {
      execl("/bin/sh", "sh", "-c", "exit 44", (char *)NULL);
      _exit(99);
    }
    await_child(child, 44);
    char *words[] = {"sh", "-c", "exit 45", NULL};
    O_CHECK(!posix_spawn(&child, "/bin/sh", NULL, NULL, words, environ));
    await_child(child, 45);
    // A child of a child.
    child = fork();
    if (!child) {
      pid_t other = fork();
      int status = -1;
      if (!other) _exit(child_work(500) ? 99 : 46);
      _exit(waitpid(other, &status, 0) == other && WIFEXITED(status) && WEXITSTATUS(status) == 46 && !child_work(500) ? 46 : 99);
    }
    await_child(child, 46);
  }
}

static pid_t lasting[8];
static int lasting_count, lasting_end[2] = {-1, -1};

static void lasting_child(void) {
  if (lasting_end[0] < 0) O_CHECK(!pipe2(lasting_end, O_CLOEXEC));
  O_CHECK(lasting_count < 8);
  pid_t child = fork();
  O_CHECK(child >= 0);
  if (child) {
    lasting[lasting_count++] = child;
    return;
  }
  close(lasting_end[1]);
  fcntl(lasting_end[0], F_SETFL, O_NONBLOCK);
  char c;
  int wrong = 0;
  while (read(lasting_end[0], &c, 1) < 0) {
    wrong |= child_work(1000);
    usleep(1000);
  }
  _exit(wrong ? 99 : 47);
}

static void end_lasting(void) {
  close(lasting_end[1]);
  for (int i = 0; i < lasting_count; i++) await_child(lasting[i], 47);
}

static void observe(void) {
  int fds = 0, tasks = 0;
  char path[64];
  for (int i = 0; i < 1024; i++) fds += fcntl(i, F_GETFD) >= 0;
  DIR *d = opendir("/proc/self/task");
  for (struct dirent *e; d && (e = readdir(d));) tasks += e->d_name[0] != '.';
  if (d) closedir(d);
  snprintf(path, sizeof path, "observed %d %d\n", fds, tasks);
  O_CHECK(write(1, path, strlen(path)) > 0);
}

// One line, without stdio: it would allocate.
static int next_line(char *line, size_t room) {
  size_t n = 0;
  while (n + 1 < room) {
    ssize_t r = read(0, line + n, 1);
    O_CHECK(r >= 0);
    if (r == 0) return 0;
    if (line[n] == '\n') break;
    n++;
  }
  line[n] = 0;
  return 1;
}

int main(void) {
  static char line[4096], answer[4200]; // not on the stack, whose copies are to be small
  for (int i = 0; i < 64; i++) old[i] = malloc(50 + (size_t)i);
  O_CHECK(write(1, "ready\n", 6) == 6);
  while (next_line(line, sizeof line)) {
    uint64_t first = o_head ? o_head->used_recs : 0;
    if (!strcmp(line, "quiet")) quiet();
    else if (!strcmp(line, "noted")) every_entry_point(7), by_copied_pointers(), hold_some();
    else if (!strcmp(line, "threads")) threads();
    else if (!strcmp(line, "old")) free_old();
    else if (!strcmp(line, "libc")) by_libc();
#ifndef STATIC
    else if (!strncmp(line, "library ", 8)) by_library(line + 8);
    else if (!strncmp(line, "everything ", 11)) {
      static char paths[4096];
      strcpy(paths, line + 11);
      everything(paths);
    }
#endif
    else if (!strcmp(line, "children")) children();
    else if (!strncmp(line, "child ", 6)) lasting_child();
    else if (!strcmp(line, "children end")) end_lasting();
    else if (!strcmp(line, "observe")) observe();
    else if (!strcmp(line, "end")) return o_end(0);
    else return 2;
    if (o_head && o_head->used_recs != first) {
      O_CHECK(phases < 17);
      o_fact(2 + 2 * (int)phases, first);
      o_fact(3 + 2 * (int)phases, o_head->used_recs);
      o_fact(0, ++phases);
    }
    int n = snprintf(answer, sizeof answer, "done %s\n", line);
    O_CHECK(write(1, answer, (size_t)n) == n);
  }
  return 3;
}
