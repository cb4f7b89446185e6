// Leaks, and all that is easily taken for one. "kinds SECONDS leaking" leaks in three places,
// and may in a fourth; "kinds SECONDS healthy" in none.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#define SITE __attribute__((noinline))
#define NO_TAIL_CALL __asm__ volatile("")

static char *volatile lost;
static char *volatile random_cache[500], *volatile in_order[300], *volatile filled[2000];
static char *volatile *pool, *volatile *boot, *volatile *till_exit;
static int fill, used;
static unsigned state = 1;

static unsigned next(void) { return state = state * 1664525u + 1013904223u, state >> 8; }
static char *made(size_t bytes) { char *at = malloc(bytes); at[0] = 1; return at; }

SITE void leaks(void) { lost = made(120); NO_TAIL_CALL; }
// Of each 64 blocks one is never released.
SITE void leaks_some(int turn) { char *at = made(64); if (turn % 64) free(at); else lost = at; NO_TAIL_CALL; }
// One block that grows for ever.
SITE void appends(int turn) {
  static char *text;
  static size_t length;
  if (turn % 100 == 0) lost = text = realloc(text, length += 1000);
  NO_TAIL_CALL;
}
// One that is replaced by a larger one whenever it is full.
SITE void doubles(void) {
  static char *table;
  static size_t used, room;
  if ((used += 16) > room) {
    free(table);
    lost = table = made(room = room ? 2 * room : 1024);
  }
  NO_TAIL_CALL;
}
SITE void replaces_at_random(void) { int at = next() % 500; free(random_cache[at]); random_cache[at] = made(400); NO_TAIL_CALL; }
SITE void replaces_in_order(int turn) { free(in_order[turn % 300]); in_order[turn % 300] = made(1000); NO_TAIL_CALL; }
// A cache of what there are only so many of.
SITE void fills(void) { int at = next() % 2000; if (!filled[at]) filled[at] = made(200); NO_TAIL_CALL; }
// A free list that has grown to what was needed most at once.
SITE void pooled(void) { if (used < 600 && next() % 3 == 0) pool[used++] = made(300); NO_TAIL_CALL; }
SITE void starts(void) { for (int at = 0; at < 3000; at++) boot[at] = made(100); NO_TAIL_CALL; }
SITE void churns(void) { free(made(16 + next() % 200)); NO_TAIL_CALL; }
SITE void kept_till_exit(int turn) { till_exit[turn % 200000] = made(50); NO_TAIL_CALL; }

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int count, char **words) {
  if (count < 3) return 2;
  double end = now() + atof(words[1]);
  int leaking = !strcmp(words[2], "leaking"), turn = 0;
  pool = calloc(600, sizeof *pool), boot = calloc(3000, sizeof *boot), till_exit = calloc(200000, sizeof *till_exit);
  starts();
  for (; now() < end; turn++) {
    for (int times = 0; times < 20; times++) churns();
    if (leaking) leaks(), leaks_some(turn), appends(turn), doubles();
    replaces_at_random(), replaces_in_order(turn), fills(), pooled(), kept_till_exit(turn);
    usleep(300);
  }
  for (int at = 0; at < 200000; at++) free(till_exit[at]);
  printf("turns %d\n", turn);
  return 0;
}
