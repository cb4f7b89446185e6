// Blocks once in the system call it is told, and says what that returned and how long it took.
//   attach_blocked --list           one line for each kind: its name, then "timeout" and "woken" as it has them
//   attach_blocked KIND timeout MS  the call's own timeout (or its timer or child) ends it
//   attach_blocked KIND woken MS    another process ends it
// Says "ready NUMBER" just before the call (NUMBER as in /proc/PID/syscall), then one line of JSON. Exit status 1: not as it must be, the
// moment's lateness aside, which its caller judges.
#include "attach_blocking.h"

static int list(void) {
  for (size_t i = 0; i < BLOCKINGS; i++) {
    int modes = blockings[i].modes;
    printf("%s%s%s\n", blockings[i].name, modes & B_TIMES_OUT ? " timeout" : "", modes & B_WOKEN ? " woken" : "");
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "--list")) return list();
  if (argc != 4) return 2;
  const struct blocking *k = NULL;
  for (size_t i = 0; i < BLOCKINGS; i++)
    if (!strcmp(blockings[i].name, argv[1])) k = &blockings[i];
  int woken = !strcmp(argv[2], "woken"), ms = atoi(argv[3]);
  if (!k || !(k->modes & (woken ? B_WOKEN : B_TIMES_OUT))) return 2;

  sigset_t blocked, before, after;
  sigemptyset(&blocked);
  sigaddset(&blocked, B_SIGNAL);
  B_MUST(!sigprocmask(SIG_BLOCK, &blocked, &before));
  B_MUST(!sigprocmask(SIG_SETMASK, NULL, &before));
  struct blocker *b = (struct blocker *)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  B_MUST(b != MAP_FAILED);
  double start = b_now_ms(), starved = b_starved_ms();
  b_begin(k, b, ms);
  pid_t peer = 0;
  if (woken) {
    B_MUST((peer = fork()) >= 0);
    if (!peer) {
      struct timespec t = b_span(ms);
      while (nanosleep(&t, &t) && errno == EINTR) {}
      k->wake(b);
      _exit(0);
    }
  }
  dprintf(1, "ready %ld\n", k->number);
  errno = 0;
  long value = k->wait(b, woken ? B_FOREVER : ms);
  int error = errno;
  double elapsed = b_now_ms() - start;
  starved = b_starved_ms() - starved;
  int right = b_right(k, b, woken, value, error);
  int early = elapsed + k->may_be_early_ms < ms;
  B_MUST(!sigprocmask(SIG_SETMASK, NULL, &after));
  int masked = !memcmp(&before, &after, 8); // what the kernel knows of it
  dprintf(1, "{\"kind\":\"%s\",\"woken\":%s,\"value\":%ld,\"errno\":%d,\"elapsed_ms\":%.1f,\"starved_ms\":%.1f,\"by_timer\":%s,\"right\":%s,\"early\":%s,\"mask_kept\":%s}\n", k->name,
          woken ? "true" : "false", value, value == -1 ? error : 0, elapsed, starved,
          b_ends_by_timer(k, woken) ? "true" : "false", right ? "true" : "false", early ? "true" : "false",
          masked ? "true" : "false");
  b_end(k, b);
  int status = 0;
  if (peer) B_MUST(waitpid(peer, &status, 0) == peer && !status);
  return right && !early && masked ? 0 : 1;
}
