// Reads what the kernel, the loader and the C library say about it, as programs do that log, check or limit themselves, and prints all that must be
// the same under a profiler. What may differ is left out by its name, and by nothing less.
// With "begin NAME=VALUE… -- COMMAND…" it starts another program instead, with this environment in this order, a signal blocked, one ignored, and
// none ignored that a C library keeps to itself: what a launcher may get wrong.
#include "oracle.h"
#include <sched.h>
#include <sys/auxv.h>
#include <sys/time.h>

static char text[1 << 20];

static size_t slurp(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  size_t n = 0;
  O_CHECK(fd >= 0);
  for (ssize_t r; (r = read(fd, text + n, sizeof text - 1 - n)) > 0;) n += (size_t)r;
  close(fd);
  text[n] = 0;
  return n;
}

static void say_file(const char *path) {
  size_t n = slurp(path);
  for (size_t i = 0; i + 1 < n; i++)
    if (!text[i]) text[i] = ' ';
  o_say("%s: %s\n", path, text);
}

static void say_link(const char *path) {
  char to[4096];
  ssize_t n = readlink(path, to, sizeof to - 1);
  O_CHECK(n > 0);
  to[n] = 0;
  o_say("%s -> %s\n", path, to);
}

static size_t entries(const char *path) {
  DIR *dir = opendir(path);
  size_t n = 0;
  O_CHECK(dir);
  while (readdir(dir)) n++;
  closedir(dir);
  return n;
}

static int is_hounds(const char *line) { return strstr(line, "hound") && !strstr(line, "looks_at_itself"); }

// All of status but what memory is used, how often it was scheduled, how many signals wait for its user's processes, and numbers of processes.
static void status(void) {
  static const char *const vary[] = {"Tgid", "Ngid", "SigQ", "Pid", "PPid", "Vm", "Rss", "HugetlbPages", "voluntary", "nonvoluntary", "NStgid", "NSpid", "NSpgid", "NSsid", "Cpus_allowed", "Mems_allowed"};
  slurp("/proc/self/status");
  for (char *save, *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
    int varies = 0;
    for (size_t i = 0; i < sizeof vary / sizeof *vary; i++) varies |= !strncmp(l, vary[i], strlen(vary[i]));
    if (!varies) o_say("%s\n", l);
  }
}

// What it was given, as the kernel keeps it. The loader's and hound's own variables are there, and nothing else that was not there without.
static void environment(void) {
  size_t n = slurp("/proc/self/environ");
  for (char *v = text; v < text + n; v += strlen(v) + 1)
    if (strncmp(v, "LD_PRELOAD=", 11) && strncmp(v, "HOUND_", 6) && strncmp(v, "ORACLE_", 7)) o_say("given %s\n", v);
}

// Every line must be what `sscanf` expects of it, in order and apart from each other, and the usual ones must be there.
static void maps(void) {
  int here = 0;
  void *block = o_malloc(100);
  unsigned long last = 0, heap = 0, stack = 0, code = 0, vdso = 0, both = 0, lines = 0;
  char exe[4096], files[64][256];
  size_t known = 0;
  ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);
  O_CHECK(length > 0);
  exe[length] = 0;
  slurp("/proc/self/maps");
  for (char *save, *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
    unsigned long from, to, offset, inode;
    unsigned major, minor;
    char access[5];
    int end = 0;
    O_CHECK(sscanf(l, "%lx-%lx %4s %lx %x:%x %lu %n", &from, &to, access, &offset, &major, &minor, &inode, &end) == 7 && end > 0);
    O_CHECK(strchr("r-", access[0]) && strchr("w-", access[1]) && strchr("x-", access[2]) && strchr("ps", access[3]));
    O_CHECK(from < to && from >= last && !(from & 4095) && !(to & 4095));
    last = to;
    lines++;
    const char *name = l + end;
    both += access[1] == 'w' && access[2] == 'x';
    if (!strcmp(name, "[heap]")) heap += (unsigned long)(uintptr_t)block >= from && (unsigned long)(uintptr_t)block < to;
    if (!strcmp(name, "[stack]")) stack += (unsigned long)(uintptr_t)&here >= from && (unsigned long)(uintptr_t)&here < to;
    if (!strcmp(name, "[vdso]")) vdso += getauxval(AT_SYSINFO_EHDR) == from;
    if (!strcmp(name, exe) && access[2] == 'x') code += (unsigned long)(uintptr_t)maps >= from && (unsigned long)(uintptr_t)maps < to;
    size_t i = 0;
    while (i < known && strcmp(files[i], name)) i++;
    if (i == known && (*name == '/' || *name == '[') && known < 64) snprintf(files[known++], sizeof *files, "%s", name);
  }
  o_say("maps: heap %lu stack %lu vdso %lu code %lu writable code %lu\n", heap, stack, vdso, code, both);
  // A library more shifts nothing but addresses: the same files are there, in some order.
  for (size_t i = 0; i < known; i++)
    for (size_t k = i + 1; k < known; k++)
      if (strcmp(files[i], files[k]) > 0) {
        char other[sizeof *files];
        memcpy(other, files[i], sizeof other), memcpy(files[i], files[k], sizeof other), memcpy(files[k], other, sizeof other);
      }
  for (size_t i = 0; i < known; i++)
    if (!is_hounds(files[i]) && strcmp(files[i], "[uprobes]") && !strstr(files[i], "/oracle")) o_say("mapped %s\n", files[i]);
  o_fact(0, lines);
  o_free(block);
}

// What the kernel told the loader: all but addresses, which are drawn anew at each start.
static void auxiliary(void) {
  static const unsigned long same[] = {AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_FLAGS, AT_UID, AT_EUID, AT_GID, AT_EGID, AT_SECURE, AT_CLKTCK, AT_HWCAP, AT_HWCAP2, AT_MINSIGSTKSZ};
  for (size_t i = 0; i < sizeof same / sizeof *same; i++) o_say("auxv %lu: %lx\n", same[i], getauxval(same[i]));
  o_say("executed as %s\n", (const char *)getauxval(AT_EXECFN));
}

struct modules {
  int number, others;
};

static int module(struct dl_phdr_info *info, size_t size, void *of) {
  struct modules *m = (struct modules *)of;
  (void)size;
  // Programs take the first for themselves.
  if (!m->number++) o_say("first module '%s' at %d\n", info->dlpi_name, info->dlpi_addr == o_head->base);
  if (!is_hounds(info->dlpi_name)) m->others++;
  return 0;
}

static int begin(char **words) {
  struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } as_usual = {0};
  for (int sig = 32; sig < 34; sig++) O_CHECK(!syscall(SYS_rt_sigaction, sig, &as_usual, NULL, sizeof as_usual.mask));
  sigset_t blocked;
  O_CHECK(!sigemptyset(&blocked) && !sigaddset(&blocked, SIGUSR1) && !sigprocmask(SIG_SETMASK, &blocked, NULL));
  O_CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR && signal(SIGTTIN, SIG_IGN) != SIG_ERR);
  char **command = words;
  while (strcmp(*command, "--")) command++;
  *command++ = NULL;
  execve(*command, command, words);
  return 98;
}

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "begin")) return begin(argv + 2);
  for (int i = 0; i < argc; i++) o_say("argument %d: %s\n", i, argv[i]);
  o_say("called %s, %s\n", program_invocation_name, program_invocation_short_name);
  say_file("/proc/self/cmdline");
  say_file("/proc/self/comm");
  say_file("/proc/self/limits");
  say_file("/proc/self/oom_score_adj");
  say_file("/proc/self/personality");
  say_file("/proc/self/coredump_filter");
  say_file("/proc/self/timerslack_ns");
  say_file("/proc/self/cgroup");
  say_link("/proc/self/exe");
  say_link("/proc/self/cwd");
  say_link("/proc/self/root");
  o_say("%zu descriptors, %zu threads\n", entries("/proc/self/fd"), entries("/proc/self/task"));
  status();
  environment();
  auxiliary();
  maps();
  struct modules modules = {0, 0};
  dl_iterate_phdr(module, &modules);
  o_say("%d modules\n", modules.others);
  char name[17] = "";
  prctl(PR_GET_NAME, name);
  int tsc = 0;
  prctl(PR_GET_TSC, &tsc);
  o_say("name %s, tsc %d, keeps capabilities %d, huge pages off %d, securebits %d\n", name, tsc, prctl(PR_GET_KEEPCAPS), prctl(PR_GET_THP_DISABLE), prctl(PR_GET_SECUREBITS));
  for (int which = ITIMER_REAL; which <= ITIMER_PROF; which++) {
    struct itimerval timer;
    O_CHECK(!getitimer(which, &timer));
    o_say("timer %d: %d\n", which, timer.it_value.tv_sec || timer.it_value.tv_usec);
  }
  for (int sig = 1; sig < 65; sig++) {
    struct sigaction action;
    if (!sigaction(sig, NULL, &action)) o_say("signal %d: %s\n", sig, action.sa_handler == SIG_DFL ? "default" : action.sa_handler == SIG_IGN ? "ignored" : "handled");
  }
  cpu_set_t cpus;
  O_CHECK(!sched_getaffinity(0, sizeof cpus, &cpus));
  o_say("%d processors, policy %d\n", CPU_COUNT(&cpus), sched_getscheduler(0));
  int state;
  o_say("children %d, errno %d\n", (int)waitpid(-1, &state, WNOHANG), errno);
  // Nothing of a profiler's is on the program's heap.
  struct mallinfo2 heap = mallinfo2();
  o_say("heap: %zu in arenas, %zu mapped blocks, %zu free chunks, %zu used, %zu free\n", heap.arena, heap.hblks, heap.ordblks, heap.uordblks, heap.fordblks);
  return o_end(0);
}
