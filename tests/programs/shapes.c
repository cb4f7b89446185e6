// A seeded random walk over call paths, built to catch a remembered stack that is believed too long: frames of fixed and
// of run-time size (alloca, VLA), frames addressed by the stack pointer and by rbp, the same path popped and pushed
// again, one frame near the root exchanged, the same depth reached by another way.
#define O_CAP (1u << 17)
#define O_WORDS (1u << 22)
#include "oracle.h"
#include <alloca.h>

static uint64_t seed = 88172645463325252ull;
static uint64_t rnd(uint64_t n) {
  seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
  return seed % n;
}

static void *bag[32];
static uint64_t visited[8];
static void walk(int depth);

static void __attribute__((noinline)) touch(void) {
  uint64_t k = rnd(32);
  if (!bag[k]) bag[k] = o_malloc(1 + rnd(300));
  else if (rnd(2)) bag[k] = o_realloc(bag[k], 1 + rnd(600));
  else { o_free(bag[k]); bag[k] = NULL; }
}

static void __attribute__((noinline)) plain(int d) { visited[0]++; walk(d); touch(); }
static void __attribute__((noinline)) padded(int d) {
  volatile char pad[200];
  pad[d] = 1;
  visited[1]++; walk(d); touch(); pad[d + 1] = pad[d];
}
static void __attribute__((noinline)) with_alloca(int d) {
  size_t n = 16 + rnd(512);
  volatile char *p = alloca(n);
  p[0] = 1;
  visited[2]++; walk(d); touch(); p[n - 1] = p[0];
}
static void __attribute__((noinline)) with_vla(int d) {
  size_t n = 8 + rnd(8) * 16;
  volatile char v[n];
  v[n - 1] = 1;
  visited[3]++; touch(); walk(d); v[0] = v[n - 1];
}
static void __attribute__((noinline, optimize("no-omit-frame-pointer"))) framed(int d) { visited[4]++; walk(d); touch(); }
static void __attribute__((noinline, optimize("omit-frame-pointer"))) unframed(int d) { visited[5]++; walk(d); touch(); }
// More arguments than registers: the outgoing ones are pushed, so the stack pointer moves inside the frame.
static uint64_t __attribute__((noinline)) many(int d, uint64_t b, uint64_t c, uint64_t e, uint64_t f, uint64_t g, uint64_t h, uint64_t i, uint64_t j) {
  visited[6]++; walk(d); touch();
  return b + c + e + f + g + h + i + j;
}
static void __attribute__((noinline)) pusher(int d) { visited[7] += many(d, 1, 2, 3, 4, 5, 6, 7, 8) / 36; touch(); }

static void __attribute__((noinline)) walk(int depth) {
  if (depth <= 0) { touch(); return; }
  int turns = rnd(12) == 0 ? 2 : 1;
  while (turns--) {
    switch (rnd(7)) {
    case 0: plain(depth - 1); break;
    case 1: padded(depth - 1); break;
    case 2: with_alloca(depth - 1); break;
    case 3: with_vla(depth - 1); break;
    case 4: framed(depth - 1); break;
    case 5: unframed(depth - 1); break;
    case 6: pusher(depth - 1); break;
    }
    if (rnd(4) == 0) touch();
  }
}

// A long path of which the lower part stays while its leaves, or one frame in its middle, change.
static void __attribute__((noinline)) leaf_a(void) { touch(); }
static void __attribute__((noinline)) leaf_b(void) { volatile char pad[96]; pad[0] = 1; touch(); pad[1] = pad[0]; }
static void __attribute__((noinline)) trunk(int depth, int fork_at, int way) {
  if (depth == 0) { way & 1 ? leaf_a() : leaf_b(); touch(); return; }
  if (depth == fork_at && way & 2) trunk(depth - 1, fork_at, way);
  else trunk(depth - 1, fork_at, way);
  if (rnd(3) == 0) touch();
}

int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 1200;
  for (int i = 0; i < rounds; i++) {
    walk((int)rnd(18));
    trunk(30, 28, (int)rnd(4));
    trunk(30, 28, (int)rnd(4));
    if (rnd(5) == 0) trunk(3, 1, 1); // a shallow call in between
  }
  for (int i = 0; i < 8; i++) O_CHECK(visited[i] > 0);
  for (int i = 0; i < 32; i++) o_free(bag[i]);
  return o_end(0);
}
