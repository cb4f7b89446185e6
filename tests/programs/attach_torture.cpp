// A program that does to itself whatever a profiler's stop, patch or remote call could break, and checks itself all along.
//   attach_torture [--seconds N] [--threads N] [--seed N] [--library PATH] [--late-ms N] [--only ROLE]
// At SIGHUP all threads give back what they hold and rest ("resting"); at the next they go on ("working"). Each second it says
// "tick MS-OF-PROCESSOR-TIME ALLOCATIONS".
// A call that ends more than --late-ms behind its time is told on standard error, and the latest at the end: its caller knows how long the
// program was stopped, and judges.
// Says "ready" when all its threads work; ends after N seconds or at SIGTERM; prints one line of JSON; exit status 1 if anything was wrong.
// Needs no network. What is wrong is told on standard error at once.
#include "attach_torture.h"
#include "attach_torture_machine.h"
#include "attach_torture_memory.h"
#include "attach_torture_process.h"

#include <cctype>
#include <dirent.h>
#include <memory>

using namespace torture;

namespace {

struct Role {
  const char *name;
  void (*step)(Worker &);
  Signals signals;
};
const Role roles[] = {
    {"memory", step_memory, none},         {"signalled_restart", step_signalled, restarting},
    {"blocking", step_blocking, none},     {"exceptions", step_exceptions, none},
    {"jumps", step_jumps, none},           {"fork", step_fork, none},
    {"library", step_library, none},       {"threads", step_threads, none},
    {"blocking", step_blocking, none},     {"signalled_interrupt", step_signalled, interrupting},
    {"arenas", step_arenas, none},         {"loader", step_loader, none},
    {"registers", step_registers, none},   {"calls", step_calls, none},
    {"vfork", step_vfork, none},           {"handover", step_handover, none},
    {"blocking", step_blocking, none},     {"region", step_region, none},
    {"blocking", step_blocking, none},     {"handover", step_handover, none},
};

void check_mask(Worker &w, uint64_t wanted) {
  uint64_t mask = kernel_mask();
  if (mask != wanted) fail("role %s: the signal mask was %lx, is %lx", w.role, wanted, mask);
  count.mask_checks.fetch_add(1, std::memory_order_relaxed);
}

void *work(void *arg) {
  Worker &w = *(Worker *)arg;
  self = w.signals == none ? nullptr : &w;
  w.tid = (pid_t)syscall(SYS_gettid);
  uint64_t mask = kernel_mask();
  do {
    w.step(w);
    check_mask(w, mask);
    w.progress.fetch_add(1, std::memory_order_relaxed);
    while (resting && !stopping) w.rests = true, usleep(1000);
    w.rests = false;
  } while (!stopping);
  w.step(w); // the last one gives back what the role holds
  w.done = true;
  // Signals under way still come here.
  while (w.signals != none && w.handled != w.sent && w.progress.load() != ~0ull) usleep(1000);
  return nullptr;
}

size_t lines_of(const char *path, bool without_hound) {
  FILE *f = fopen(path, "re");
  char line[4096];
  size_t n = 0;
  while (f && fgets(line, sizeof line, f)) n += !without_hound || !strstr(line, "hound");
  if (f) fclose(f);
  return n;
}
size_t entries_of(const char *path) {
  DIR *d = opendir(path);
  size_t n = 0;
  for (dirent *e; d && (e = readdir(d));) n += isdigit(e->d_name[0]) != 0;
  if (d) closedir(d);
  return n;
}
// Waits a little for what the kernel has not quite taken away yet.
bool comes_to(size_t wanted, const char *path) {
  for (int i = 0; i < 2000; i++, usleep(1000))
    if (entries_of(path) == wanted) return true;
  return false;
}

std::vector<std::unique_ptr<Worker>> workers;
std::atomic<bool> senders_stop{false};

void *send(void *) {
  while (!senders_stop) {
    for (auto &w : workers)
      if (w->signals != none && !w->done) send_signals(*w);
    usleep(300);
  }
  return nullptr;
}

// No worker may stand still: a hang is a failure with a name.
void watch(std::vector<uint64_t> &seen, std::vector<double> &since) {
  double now = b_now_ms();
  for (size_t i = 0; i < workers.size(); i++) {
    uint64_t at = workers[i]->progress;
    if (at != seen[i] || workers[i]->done || workers[i]->rests) seen[i] = at, since[i] = now;
    if (now - since[i] < 60000) continue;
    fail("role %s (thread %d) has made no progress for a minute; it last blocked in %s", workers[i]->role, (int)workers[i]->tid,
         workers[i]->blocked_in.load());
    _exit(1);
  }
}

void tick() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  printf("tick %.1f %lu\n", (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6, count.allocations.load());
  fflush(stdout);
}

void rest() {
  resting = !resting;
  for (auto &w : workers)
    while (w->rests != resting && !w->done) usleep(1000);
  tick();
  printf(resting ? "resting\n" : "working\n");
  fflush(stdout);
}

// Waits for the end: the seconds, or SIGTERM. The main thread's own wait is under test, too.
void wait_for_end(double seconds) {
  std::vector<uint64_t> seen(workers.size());
  std::vector<double> since(workers.size(), b_now_ms());
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  double end = b_now_ms() + seconds * 1000, told = 0;
  while (b_now_ms() < end) {
    timespec t = b_span(200);
    errno = 0;
    int r = sigtimedwait(&set, nullptr, &t);
    if (r == SIGTERM) return;
    if (b_now_ms() > told + 1000) tick(), told = b_now_ms();
    if (r == SIGHUP) rest();
    else if (r == -1 && errno == EINTR) count.eintr_foreign++, tell("the main thread's sigtimedwait: EINTR");
    else if (errno != EAGAIN) fail("the main thread's sigtimedwait: %d, errno %d", r, errno);
    watch(seen, since);
  }
}

void join_all() {
  stopping = true;
  std::vector<uint64_t> seen(workers.size());
  std::vector<double> since(workers.size(), b_now_ms());
  for (auto &w : workers)
    while (!w->done) watch(seen, since), usleep(2000);
}

} // namespace

int main(int argc, char **argv) {
  double seconds = 10;
  int threads = 32;
  const char *only = nullptr;
  for (int i = 1; i + 1 < argc; i += 2) {
    std::string flag = argv[i];
    if (flag == "--child") return child_work(77, atoi(argv[i + 1]));
    if (flag == "--seconds") seconds = atof(argv[i + 1]);
    else if (flag == "--threads") threads = atoi(argv[i + 1]);
    else if (flag == "--seed") seed = strtoull(argv[i + 1], nullptr, 10);
    else if (flag == "--library") library = argv[i + 1];
    else if (flag == "--late-ms") late_limit_ms = atof(argv[i + 1]);
    else if (flag == "--only") only = argv[i + 1];
    else return fprintf(stderr, "unknown: %s\n", argv[i]), 2;
  }
  if (argc % 2 == 0 || threads < 1) return fprintf(stderr, "every flag has a value\n"), 2;

  install_handlers();
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGTERM);
  sigaddset(&blocked, SIGHUP);
  sigaddset(&blocked, B_SIGNAL);
  // A child that ends while the thread that made it has everything blocked (posix_spawn) would interrupt the main thread instead.
  sigaddset(&blocked, SIGCHLD);
  B_MUST(!pthread_sigmask(SIG_BLOCK, &blocked, nullptr));
  size_t fds = entries_of("/proc/self/fd");
  waker.start();
  for (int i = 0; i < threads; i++) {
    const Role *role = &roles[(size_t)i % (sizeof roles / sizeof *roles)];
    for (const Role &r : roles)
      if (only && !strcmp(r.name, only)) role = &r;
    workers.push_back(std::make_unique<Worker>());
    Worker &w = *workers.back();
    w.role = role->name, w.step = role->step, w.signals = role->signals, w.index = i;
    w.random = Random(seed * 1000 + (uint64_t)i);
  }
  for (auto &w : workers) B_MUST(!pthread_create(&w->thread, nullptr, work, w.get()));
  for (auto &w : workers)
    while (w->tid == 0) usleep(100);
  pthread_t sender;
  B_MUST(!pthread_create(&sender, nullptr, send, nullptr));
  printf("ready\n");
  fflush(stdout);

  wait_for_end(seconds < 2 ? seconds / 2 : 1); // arenas and stacks come into being
  size_t maps = lines_of("/proc/self/maps", true);
  wait_for_end(seconds < 2 ? seconds / 2 : seconds - 1);
  size_t maps_end = lines_of("/proc/self/maps", true);
  join_all();
  senders_stop = true;
  pthread_join(sender, nullptr);
  for (int i = 0; i < 10000; i++) { // every queued signal arrives
    bool all = true;
    for (auto &w : workers) all &= w->handled == w->sent;
    if (all) break;
    usleep(1000);
  }
  for (auto &w : workers) {
    if (w->handled != w->sent) fail("role %s: %lu signals were queued, %lu came", w->role, w->sent.load(), w->handled.load());
    count.signals_handled += w->handlers;
    w->progress = ~0ull;
    pthread_join(w->thread, nullptr);
  }
  waker.stop();
  empty_exchange();
  if (!comes_to(fds, "/proc/self/fd")) fail("%zu descriptors at the start, %zu at the end", fds, entries_of("/proc/self/fd"));
  if (!comes_to(1, "/proc/self/task")) fail("%zu threads at the end", entries_of("/proc/self/task"));
  if (maps_end > maps + 400) fail("%zu mappings after a second, %zu at the end", maps, maps_end);

  printf("{\"failures\":%lu,\"threads\":%d,\"seed\":%lu,\"maps_start\":%zu,\"maps_end\":%zu,\"latest_ms\":%.1f,\"latest_in\":\"%s\"",
         failures.load(), threads, seed, maps, maps_end, (double)latest.us.load() / 1000, latest.name.load());
#define X(name) printf(",\"" #name "\":%lu", count.name.load());
  T_COUNTERS(X)
#undef X
  printf("}\n");
  return failures ? 1 : 0;
}
