// Programs for `cargo xtask verdicts`: "kinds KIND SECONDS". Each does beside its own kind what healthy programs do all along: a cache of which
// a random block makes room for a new one, a queue, a set that fills, what is there from the start, and what is released at once.
// They end by _exit: what they keep is there at the end of the capture. Only "shutdown" releases all it has.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#define SITE __attribute__((noinline))
#define NO_TAIL_CALL __asm__ volatile("")

static char *volatile lost;
static char *volatile random_cache[500], *volatile in_order[300], *volatile filled[2000], *volatile large_set[6000];
static char *volatile queue[5000], *volatile kept[400000];
static char *volatile *boot;
static int head, tail, kept_number;
static _Thread_local unsigned state = 1;

static unsigned next(void) { return state = state * 1664525u + 1013904223u, state >> 8; }
static char *made(size_t bytes) {
  char *at = malloc(bytes);
  if (!at) _exit(3);
  return at[0] = 1, at;
}
static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

// What every one of them does.
SITE void replaces_at_random(void) { int at = next() % 500; free(random_cache[at]); random_cache[at] = made(100 + next() % 600); NO_TAIL_CALL; }
SITE void replaces_in_order(int turn) { free(in_order[turn % 300]); in_order[turn % 300] = made(1000); NO_TAIL_CALL; }
SITE void fills(void) { int at = next() % 2000; if (!filled[at]) filled[at] = made(200); NO_TAIL_CALL; }
SITE void churns(void) { free(made(16 + next() % 2000)); NO_TAIL_CALL; }
SITE void starts(void) { boot = calloc(3000, sizeof *boot); for (int at = 0; at < 3000; at++) boot[at] = made(100); NO_TAIL_CALL; }

// Healthy kinds.
// A set of keys that are asked for at random, so that it is full after some 20,000 turns.
SITE void fills_large_set(void) { int at = next() % 6000; if (!large_set[at]) large_set[at] = made(500 + at % 700); NO_TAIL_CALL; }
// A queue that grows for five seconds and is emptied in the next five, always a little differently.
SITE void queues(double since) {
  int wanted = (int)since % 10 < 5 ? 2 + next() % 2 : 0;
  for (; wanted && head - tail < 5000; wanted--) queue[head++ % 5000] = made(300);
  if (!wanted && (int)since % 10 >= 5) for (int times = 0; times < 3 && tail < head; times++) free(queue[tail++ % 5000]);
  NO_TAIL_CALL;
}
// A free list as long as what was wanted at once: ever more rarely more than ever before.
SITE void has_high_water(void) {
  static char *volatile pool[4000];
  static int length;
  int wanted = 0;
  for (int times = 0; times < 40; times++) wanted += __builtin_ctz(next() | 1 << 20);
  while (length < wanted * 4) pool[length++] = made(400);
  NO_TAIL_CALL;
}
SITE void keeps_till_shutdown(void) { if (kept_number < 400000) kept[kept_number++] = made(80); NO_TAIL_CALL; }
static void shuts_down(void) {
  while (kept_number) free(kept[--kept_number]);
  for (int at = 0; at < 500; at++) free(random_cache[at]);
  for (int at = 0; at < 300; at++) free(in_order[at]);
  for (int at = 0; at < 2000; at++) free(filled[at]);
  for (int at = 0; at < 3000; at++) free(boot[at]);
  free((void *)boot);
}

// Leaks.
SITE void leaks_much(void) { lost = made(4000); NO_TAIL_CALL; }
SITE void leaks_most(void) { lost = made(6500); NO_TAIL_CALL; }
// 1.5 % of what the two leak.
SITE void leaks_little(void) { lost = made(100); NO_TAIL_CALL; }
SITE void handles_request(int turn) { char *at = made(600); if (turn % 64) free(at); else lost = at; NO_TAIL_CALL; }
SITE void leaks_large(void) { lost = made(4 << 20); NO_TAIL_CALL; }
// Reachable all the time, and never looked at again.
static struct entry { struct entry *before; char text[150]; } *log_of_all;
SITE void remembers(void) {
  struct entry *one = (struct entry *)made(sizeof *one);
  one->before = log_of_all, log_of_all = one;
  NO_TAIL_CALL;
}
// Each grows by realloc three times, then it is forgotten.
SITE void grows_and_forgets(void) {
  char *at = malloc(40);
  for (size_t size = 80; size < 1000; size *= 3) at = realloc(at, size);
  lost = at;
  NO_TAIL_CALL;
}
// A single block that becomes larger and larger.
SITE void appends(int turn) {
  static char *text;
  static size_t used, room;
  if (turn % 50) return;
  used += 5000;
  if (used > room) text = realloc(text, room = used + 20000), memset(text + used, 1, room - used);
  lost = text;
  NO_TAIL_CALL;
}
// Some blocks every few seconds.
SITE void leaks_batch(void) { for (int times = 0; times < 20; times++) lost = made(500); NO_TAIL_CALL; }
// Of each ten that leave the cache one is forgotten.
SITE void evicts_most(int turn) {
  static char *volatile entries[700];
  char *volatile *at = &entries[next() % 700];
  if (turn % 10) free(*at);
  *at = made(300 + next() % 100);
  NO_TAIL_CALL;
}
// As many buffers as connections, each of which grows now and then and never shrinks.
SITE void buffers(void) {
  static char *buffer[40];
  static size_t length[40];
  int at = next() % 40;
  if (next() % 20 == 0) lost = buffer[at] = realloc(buffer[at], length[at] += 64 + next() % 400);
  NO_TAIL_CALL;
}
SITE char *begins_job(void) { char *context = made(700); NO_TAIL_CALL; return context; }
static void *job(void *of) {
  state = (unsigned)(size_t)of;
  lost = begins_job(); // nobody frees it when the thread ends
  for (int times = 0; times < 50; times++) churns();
  return NULL;
}
SITE void runs_job(int turn) {
  pthread_t thread;
  if (turn % 4 || pthread_create(&thread, NULL, job, (void *)(size_t)turn)) return;
  pthread_join(thread, NULL);
}

int main(int count, char **words) {
  if (count < 3) return 2;
  const char *kind = words[1];
  double begun = now(), end = begun + atof(words[2]), large = begun;
  int is_known = 0;
#define IS(name) (!strcmp(kind, name) && (is_known = 1))
  starts();
  int turn = 0;
  for (; now() < end; turn++) {
    for (int times = 0; times < 20; times++) churns();
    replaces_at_random(), replaces_in_order(turn), fills();
    if (IS("plateau")) fills_large_set();
    if (IS("breathes")) queues(now() - begun);
    if (IS("high_water")) has_high_water();
    if (IS("batch") && now() > large) leaks_batch(), large += 3 + next() % 1000 / 500.0;
    if (IS("evicts")) evicts_most(turn);
    if (IS("buffers")) buffers();
    if (IS("shutdown")) keeps_till_shutdown();
    if (IS("start_up")) is_known = 1;
    if (IS("big")) leaks_much();
    if (IS("small")) leaks_most(), leaks_little();
    if (IS("requests")) handles_request(turn);
    if (IS("rare") && now() > large) leaks_large(), large += 2 + next() % 1000 / 500.0;
    if (IS("list")) remembers();
    if (IS("forgotten")) grows_and_forgets();
    if (IS("append")) appends(turn);
    if (IS("thread")) runs_job(turn);
    if (!is_known) return 2;
    usleep(300);
  }
  printf("turns %d\n", turn);
  fflush(stdout);
  if (IS("shutdown")) return shuts_down(), 0;
  _exit(0);
}
