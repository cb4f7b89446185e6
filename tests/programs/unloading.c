// A library is loaded and unloaded all the time, at one place, while other threads allocate below words that look like return addresses in
// it: their frame pointer leads to a frame that there never was. And threads come and go whose thread-local storage the loader frees.
//   unloading LIBRARY OTHER ROUNDS: LIBRARY is loaded and unloaded ROUNDS times (0: until something happens to the input); OTHER stays.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what), _exit(1)))
enum { GUESSERS = 2, CODE = 1 << 20 };

static atomic_uintptr_t code;
static atomic_bool over;
static atomic_ulong guesses, threads;

// Calls allocate(24) and free what it gives, with `frame` as its frame pointer. It has no unwind rules.
void allocate_below(void *frame);
__asm__(".text\n"
        ".type allocate_below, @function\n"
        "allocate_below:\n"
        "  push %rbp\n"
        "  mov %rdi, %rbp\n"
        "  mov $24, %edi\n"
        "  call malloc@PLT\n"
        "  mov %rax, %rdi\n"
        "  call free@PLT\n"
        "  pop %rbp\n"
        "  ret\n"
        ".size allocate_below, . - allocate_below\n");

static void *guess(void *arg) {
  uint64_t random = (uintptr_t)arg;
  while (!over) {
    uintptr_t start = code;
    if (!start) continue;
    random = random * 6364136223846793005u + 1442695040888963407u;
    uintptr_t frames[4] __attribute__((aligned(16))) = {0, start + random % CODE, 0, 0};
    frames[0] = (uintptr_t)&frames[2];
    allocate_below(frames);
    atomic_fetch_add(&guesses, 1);
    if (guesses % 64 == 0) usleep(100);
  }
  return NULL;
}

static void *touch(void *arg) {
  int *(*local)(void) = (int *(*)(void))arg;
  *local() += 1; // the loader allocates the thread's storage for the library, and frees it when the thread ends
  return NULL;
}

// Threads whose storage for a library that stays is freed by the loader.
static void *come_and_go(void *local) {
  while (!over) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, touch, local));
    CHECK(!pthread_join(thread, NULL));
    atomic_fetch_add(&threads, 1);
    usleep(200);
  }
  return NULL;
}

static int has_input_ended(void) {
  struct pollfd fd = {.fd = 0, .events = POLLIN};
  return poll(&fd, 1, 0) != 0;
}

int main(int argc, char **argv) {
  CHECK(argc == 4);
  unsigned long rounds = strtoul(argv[3], NULL, 10), places = 0;
  void *stays = dlopen(argv[2], RTLD_NOW);
  CHECK(stays);
  pthread_t guessers[GUESSERS], comer;
  for (uintptr_t i = 0; i < GUESSERS; i++) CHECK(!pthread_create(&guessers[i], NULL, guess, (void *)(i + 1)));
  CHECK(!pthread_create(&comer, NULL, come_and_go, dlsym(stays, "local")));
  uintptr_t last = 0;
  for (unsigned long round = 0; rounds ? round < rounds : !has_input_ended(); round++) {
    void *library = dlopen(argv[1], RTLD_NOW);
    CHECK(library);
    void *(*allocate)(size_t) = (void *(*)(size_t))dlsym(library, "allocate");
    CHECK(allocate);
    free(allocate(100));
    uintptr_t here = (uintptr_t)dlsym(library, "code");
    CHECK(here);
    places += here == last;
    code = last = here;
    unsigned long before = guesses;
    while (guesses < before + 20) usleep(20); // some words of each round are looked up while it is there
    CHECK(!dlclose(library));
    if (round == 20) puts("ready"), fflush(stdout);
    if (!rounds && round % 50 == 0) puts("round"), fflush(stdout);
  }
  over = 1;
  for (int i = 0; i < GUESSERS; i++) CHECK(!pthread_join(guessers[i], NULL));
  CHECK(!pthread_join(comer, NULL));
  CHECK(places > 0); // the words must be of what is unloaded
  printf("guesses %lu threads %lu\n", guesses, threads);
  return 0;
}
