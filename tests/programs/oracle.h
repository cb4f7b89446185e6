// The target's own record of what it allocated: the truth that a capture is compared with.
//
// Each program notes every allocation and free it makes, right after making it, in the function that made it. The notes
// go to a file mapped MAP_SHARED before the first of them, so they survive every kind of death (SIGKILL, SIGSEGV, _exit)
// and need no system call and no lock: a slot is claimed by one atomic add. Without ORACLE_FILE in the environment the
// same memory is anonymous. The layout is read by tests/src/oracle.rs; both sides pin it by size.
//
// Stacks come from backtrace(3), an unwinder that shares no code with hound. It is called one frame below the
// allocating function, so that from the second frame on both must agree address by address.
//
// Before including: O_CAP records, O_WORDS words for stacks, O_DEPTH frames at most, O_NO_STACKS for programs too fast
// or too many-threaded to unwind twice.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
#ifdef O_OWN_SECTION // a static program's text holds libc, too
extern char __start_oracle_text[], __stop_oracle_text[];
#define O_OWN_START __start_oracle_text
#define O_OWN_END __stop_oracle_text
#endif

#if defined __GLIBC__ && !defined STATIC
#include <execinfo.h>
#define o_backtrace backtrace
#elif defined __GLIBC__ // a static program cannot load libgcc_s, but has the same unwinder linked
#include <unwind.h>
struct o_frames {
  void **ips;
  int n, most;
};
static _Unwind_Reason_Code o_frame(struct _Unwind_Context *at, void *arg) {
  struct o_frames *f = (struct o_frames *)arg;
  void *ip = (void *)_Unwind_GetIP(at);
  if (f->n == f->most || !ip) return _URC_END_OF_STACK;
  f->ips[f->n++] = ip;
  return _URC_NO_REASON;
}
__attribute__((always_inline)) static inline int o_backtrace(void **ips, int most) {
  struct o_frames f = {ips, 0, most};
  _Unwind_Backtrace(o_frame, &f);
  return f.n;
}
#else // musl: its frames are described nowhere, and nobody can say where a stack ends
#define O_NO_STACKS
#define __rlimit_resource_t int
static inline int o_backtrace(void **ips, int most) {
  (void)ips, (void)most;
  return 0;
}
#endif
// How many bytes of a block may be used, as its allocator says.
#ifndef O_USABLE
#define O_USABLE malloc_usable_size
#endif

#ifndef O_CAP
#define O_CAP (1u << 16)
#endif
#ifndef O_WORDS
#define O_WORDS (1u << 21)
#endif
#ifndef O_DEPTH
#define O_DEPTH 256
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum o_op {
  O_MALLOC = 1, O_CALLOC, O_REALLOC, O_REALLOCARRAY, O_POSIX_MEMALIGN, O_MEMALIGN, O_ALIGNED_ALLOC, O_VALLOC, O_PVALLOC,
  O_FREE,
  O_MARKER, // size = the value
  O_MMAP, O_MUNMAP, O_MREMAP,
  O_MALLOCX, O_RALLOCX, // jemalloc's
  O_NEW, O_NEW_ARRAY,   // of an allocator that has its own
  O_XALLOCX,            // resized where it is
};

struct o_rec {
  uint32_t op; // written last, with release: 0 means the slot was claimed but never filled
  uint32_t tid;
  uint64_t addr;   // what came back (freed address for O_FREE); 0: the call failed
  uint64_t size;   // as requested, in bytes (n*m for the array forms)
  uint64_t usable; // malloc_usable_size of addr at once afterwards
  uint64_t prev;   // address passed to realloc
  uint64_t stack;  // first word of the stack in the word area
  uint64_t depth;  // its length; innermost first; the first word lies in the function that called the allocator
};

struct o_head {
  char magic[8]; // "ORACLE1\n"
  uint64_t cap, words;
  uint64_t used_recs, used_words; // may run past cap/words: the surplus was not recorded, and the test fails
  uint64_t pid;
  uint64_t base; // where the executable was loaded
  uint64_t restorer; // the return address of signal handlers
  uint64_t own_count, own[16][2];       // code of the program itself and of the libraries it opened
  uint64_t through_count, through[16][2]; // code standing between the program and malloc: operator new and its kin
  uint64_t fact[64]; // program-defined numbers that its test wants
};

#define O_HEAD_SIZE 4096
#ifdef __cplusplus
static_assert(sizeof(struct o_rec) == 56 && sizeof(struct o_head) <= O_HEAD_SIZE, "layout is shared with oracle.rs");
#else
_Static_assert(sizeof(struct o_rec) == 56 && sizeof(struct o_head) <= O_HEAD_SIZE, "layout is shared with oracle.rs");
#endif

extern char __executable_start[] __attribute__((weak)), etext[] __attribute__((weak));

// The program's own code: all of the executable, unless the includer says otherwise.
#ifndef O_OWN_START
#define O_OWN_START __executable_start
#define O_OWN_END etext
#endif

static struct o_head *o_head;
static struct o_rec *o_recs;
static uint64_t *o_word;
static int o_stacks =
#ifdef O_NO_STACKS
    0;
#else
    1;
#endif
static __thread uint32_t o_tid;

#define O_UNUSED __attribute__((unused))

// Ends the program with a message: a program that fails its own check is no oracle.
O_UNUSED static void o_fail(const char *what, int line) {
  dprintf(2, "oracle program failed: %s (line %d, errno %d)\n", what, line, errno);
  _exit(99);
}
#define O_CHECK(cond) ((cond) ? (void)0 : o_fail(#cond, __LINE__))

static const char *o_env(char **envp, const char *name) {
  size_t n = strlen(name);
  for (; envp && *envp; envp++)
    if (!strncmp(*envp, name, n) && (*envp)[n] == '=') return *envp + n + 1;
  return NULL;
}

// With ORACLE_WAIT in the environment, the name of a pipe: waits until who has it open for writing closes it. So a program can be attached to
// before its first note. A program started by this one finds no such pipe any more, and goes on.
static int o_paced; // it has waited so: who watches must keep up, so it makes a pause now and then
O_UNUSED static void o_await(char **envp) {
  const char *path = o_env(envp, "ORACLE_WAIT");
  int saved = errno, fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  char c;
  while (fd >= 0 && read(fd, &c, 1) > 0) {}
  if (fd >= 0) close(fd), o_paced = 1;
  errno = saved;
}

// Called by the constructor below, or earlier by a program that allocates before constructors run.
O_UNUSED static void o_init(char **envp) {
  if (o_head) return;
  int saved = errno;
  size_t size = O_HEAD_SIZE + (size_t)O_CAP * sizeof(struct o_rec) + (size_t)O_WORDS * 8;
  const char *path = o_env(envp, "ORACLE_FILE");
  int fd = -1, flags = MAP_SHARED | MAP_NORESERVE;
  if (path) {
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    O_CHECK(fd >= 0);
    O_CHECK(ftruncate(fd, (off_t)size) == 0);
  } else {
    flags |= MAP_ANONYMOUS;
  }
  void *m = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
  O_CHECK(m != MAP_FAILED);
  if (fd >= 0) close(fd);
  o_recs = (struct o_rec *)((char *)m + O_HEAD_SIZE);
  o_word = (uint64_t *)(o_recs + O_CAP);
  struct o_head *h = (struct o_head *)m;
  h->cap = O_CAP;
  h->words = O_WORDS;
  h->pid = (uint64_t)getpid();
  h->base = (uint64_t)(uintptr_t)__executable_start;
  h->own[0][0] = (uint64_t)(uintptr_t)O_OWN_START;
  h->own[0][1] = (uint64_t)(uintptr_t)O_OWN_END;
  h->own_count = 1;
  memcpy(h->magic, "ORACLE1\n", 8);
  o_head = h;
  errno = saved;
}

__attribute__((constructor(101))) static void o_construct(int argc, char **argv, char **envp) {
  (void)argc, (void)argv;
#ifndef __GLIBC__ // musl calls constructors without arguments
  extern char **environ;
  envp = environ;
#endif
  o_init(envp);
#ifndef STATIC // there is nothing to load, and the unwinder's tables are not registered yet
  void *warm[4];
  if (o_stacks) o_backtrace(warm, 4); // loads libgcc_s now, not inside a measured path
#endif
  o_await(envp);
}

// The process goes on unrecorded: for the child after fork, which shares the mapping.
O_UNUSED static void o_stop(void) { o_head = NULL; }

__attribute__((noinline)) O_UNUSED static void o_note_at(enum o_op op, uintptr_t addr, uint64_t size, uintptr_t prev) {
  struct o_head *h = o_head;
  if (!h) return;
  int saved = errno;
  uint64_t i = __atomic_fetch_add(&h->used_recs, 1, __ATOMIC_RELAXED);
  if (i < h->cap) {
    struct o_rec *r = &o_recs[i];
    if (!o_tid) o_tid = (uint32_t)syscall(SYS_gettid);
    r->tid = o_tid;
    r->addr = addr;
    r->size = size;
    r->prev = prev;
    r->usable = addr && (op < O_FREE || op >= O_MALLOCX) ? O_USABLE((void *)addr) : 0;
    if (o_stacks) {
      void *ips[O_DEPTH + 1];
      int n = o_backtrace(ips, O_DEPTH + 1);
      if (n > 1) {
        uint64_t at = __atomic_fetch_add(&h->used_words, (uint64_t)(n - 1), __ATOMIC_RELAXED);
        if (at + (uint64_t)(n - 1) <= h->words) {
          memcpy(o_word + at, ips + 1, (size_t)(n - 1) * 8);
          r->stack = at;
          r->depth = (uint64_t)(n - 1);
        }
      }
    }
    __atomic_store_n(&r->op, (uint32_t)op, __ATOMIC_RELEASE);
    if (o_paced && i % 512 == 511) usleep(10000);
  }
  errno = saved;
}

// The empty statement behind the call keeps a compiler from making it a jump, which would leave the caller out of its stack.
#define o_note(op, addr, size, prev) \
  __extension__({ o_note_at((op), (uintptr_t)(addr), (size), (uintptr_t)(prev)); __asm__ volatile("" : : : "memory"); })

// Code between [lo, hi) belongs to the program (a library it opened).
O_UNUSED static void o_own(uint64_t lo, uint64_t hi) {
  if (!o_head) return;
  for (uint64_t i = 0; i < o_head->own_count; i++)
    if (o_head->own[i][0] == lo && o_head->own[i][1] == hi) return;
  O_CHECK(o_head->own_count < 16);
  o_head->own[o_head->own_count][0] = lo;
  o_head->own[o_head->own_count++][1] = hi;
}

// Notes where handlers of this signal return to, as the kernel was told.
O_UNUSED static void o_restorer(int sig) {
  struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } action;
  O_CHECK(!syscall(SYS_rt_sigaction, sig, NULL, &action, sizeof action.mask));
  if (o_head) o_head->restorer = (uint64_t)(uintptr_t)action.restorer;
}

#ifdef __GLIBC__
// A function of a library through which the program allocates (operator new): its frames stand between the two.
O_UNUSED static void o_through(const char *symbol) {
  void *f = dlsym(RTLD_DEFAULT, symbol);
  if (!f || !o_head) return;
  Dl_info info;
  ElfW(Sym) *sym = NULL;
  O_CHECK(dladdr1(f, &info, (void **)&sym, RTLD_DL_SYMENT) && sym);
  O_CHECK(o_head->through_count < 16);
  o_head->through[o_head->through_count][0] = (uint64_t)(uintptr_t)f;
  o_head->through[o_head->through_count++][1] = (uint64_t)(uintptr_t)f + sym->st_size;
}
#endif

O_UNUSED static void o_fact(int i, uint64_t value) {
  if (o_head) o_head->fact[i] = value;
}

// Old addresses are taken as numbers before the call, so that no freed pointer is touched, not even by value.
#define O_DO __extension__
// n*m, or the largest size where the product does not fit: such a call must fail, and must not look like one of size 0.
#define O_MUL(a, b) O_DO({ size_t m_; __builtin_mul_overflow((a), (b), &m_) ? SIZE_MAX : m_; })
#define o_malloc(n) O_DO({ size_t n_ = (n); void *p_ = malloc(n_); o_note(O_MALLOC, p_, n_, 0); p_; })
#define o_calloc(a, b) O_DO({ size_t a_ = (a), b_ = (b); void *p_ = calloc(a_, b_); o_note(O_CALLOC, p_, O_MUL(a_, b_), 0); p_; })
#define o_realloc(p, n) O_DO({ \
  void *o_ = (p); uintptr_t old_ = (uintptr_t)o_; size_t n_ = (n); void *p_ = realloc(o_, n_); \
  o_note(O_REALLOC, p_, n_, old_); p_; })
#define o_reallocarray(p, a, b) O_DO({ \
  void *o_ = (p); uintptr_t old_ = (uintptr_t)o_; size_t a_ = (a), b_ = (b); void *p_ = reallocarray(o_, a_, b_); \
  o_note(O_REALLOCARRAY, p_, O_MUL(a_, b_), old_); p_; })
#define o_posix_memalign(out, a, n) O_DO({ \
  size_t n_ = (n); void **o_ = (out); int r_ = posix_memalign(o_, (a), n_); \
  o_note(O_POSIX_MEMALIGN, r_ ? NULL : *o_, n_, 0); r_; })
#define o_memalign(a, n) O_DO({ size_t n_ = (n); void *p_ = memalign((a), n_); o_note(O_MEMALIGN, p_, n_, 0); p_; })
#define o_aligned_alloc(a, n) O_DO({ size_t n_ = (n); void *p_ = aligned_alloc((a), n_); o_note(O_ALIGNED_ALLOC, p_, n_, 0); p_; })
#define o_valloc(n) O_DO({ size_t n_ = (n); void *p_ = valloc(n_); o_note(O_VALLOC, p_, n_, 0); p_; })
#define o_pvalloc(n) O_DO({ size_t n_ = (n); void *p_ = pvalloc(n_); o_note(O_PVALLOC, p_, n_, 0); p_; })
// free(NULL) frees nothing and is noted as nothing.
#define o_free(p) O_DO({ void *f_ = (p); uintptr_t gone_ = (uintptr_t)f_; free(f_); if (gone_) o_note(O_FREE, gone_, 0, 0); })

// ---- what the program prints at its end, compared with and without hound ----

static char o_text[1 << 16];
static size_t o_text_len;

O_UNUSED __attribute__((format(printf, 1, 2))) static void o_say(const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  int n = vsnprintf(o_text + o_text_len, sizeof o_text - o_text_len, fmt, ap);
  va_end(ap);
  if (n > 0) o_text_len += (size_t)n < sizeof o_text - o_text_len ? (size_t)n : sizeof o_text - o_text_len - 1;
}

O_UNUSED static void o_flush(void) {
  size_t at = 0;
  while (at < o_text_len) {
    ssize_t n = write(1, o_text + at, o_text_len - at);
    if (n <= 0) break;
    at += (size_t)n;
  }
  o_text_len = 0;
}

// Replays the notes and prints how many blocks were made and live. Peak and live bytes are exact for one thread only.
O_UNUSED static void o_summary(void) {
  if (!o_head) return;
  uint64_t allocs = 0, bytes = 0, frees = 0, hash = 1469598103934665603ull;
  uint64_t n = o_head->used_recs;
  O_CHECK(n <= o_head->cap && o_head->used_words <= o_head->words);
  for (uint64_t i = 0; i < n; i++) {
    struct o_rec *r = &o_recs[i];
    int moved = (r->op == O_REALLOC || r->op == O_REALLOCARRAY || r->op == O_RALLOCX || r->op == O_XALLOCX) && r->prev;
    if ((r->op < O_FREE || r->op >= O_MALLOCX) && r->addr) allocs++, bytes += r->size;
    if (r->op == O_FREE || (moved && (r->addr || r->size == 0))) frees++;
    if (r->op < O_FREE) hash += (r->op * 31 + r->size) * 1099511628211ull + (r->usable << 7);
  }
  o_say("oracle: %lu allocated, %lu bytes, %lu freed\n", allocs, bytes, frees);
#ifndef O_NO_HASH // usable sizes depend on neighbours where threads race for chunks
  o_say("usable: %016lx\n", hash);
#endif
  (void)hash;
}

// Everything about itself that a program can see and that a profiler must not change.
O_UNUSED static void o_observe(void) {
  int saved = errno;
  extern char **environ;
  for (char **e = environ; e && *e; e++)
    if (strncmp(*e, "ORACLE_", 7)) o_say("env %s\n", *e);
  char line[512], path[64];
  int dir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  for (int fd = 0; dir >= 0 && fd < 1024; fd++) { // by number: a listing's order means nothing
    if (fd == dir) continue;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, line, sizeof line - 1);
    if (n < 0) continue;
    line[n] = 0;
    o_say("fd %d %s flags %x\n", fd, fd < 3 ? "std" : line, (unsigned)fcntl(fd, F_GETFD));
  }
  if (dir >= 0) close(dir);
  static const char *const keys[] = {"Umask", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt", "CapEff", "NoNewPrivs", "Seccomp:", "TracerPid"};
  static char status[8192];
  int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  ssize_t n = fd >= 0 ? read(fd, status, sizeof status - 1) : 0;
  if (fd >= 0) close(fd);
  status[n > 0 ? n : 0] = 0;
  for (char *l = status; l && *l; l = strchr(l, '\n') ? strchr(l, '\n') + 1 : NULL)
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
      if (!strncmp(l, keys[k], strlen(keys[k]))) o_say("%.*s\n", (int)strcspn(l, "\n"), l);
  int death = -1, reaper = -1;
  prctl(PR_GET_PDEATHSIG, &death);
  prctl(PR_GET_CHILD_SUBREAPER, &reaper);
  o_say("deathsig %d subreaper %d dumpable %d personality %x\n", death, reaper, prctl(PR_GET_DUMPABLE), (unsigned)personality(0xffffffff));
  for (int r = 0; r < RLIM_NLIMITS; r++) {
    struct rlimit lim;
    if (!getrlimit((__rlimit_resource_t)r, &lim)) o_say("rlimit %d %lx %lx\n", r, (unsigned long)lim.rlim_cur, (unsigned long)lim.rlim_max);
  }
  o_say("leader %d nice %d errno %d\n", getpgrp() == getpid(), getpriority(PRIO_PROCESS, 0), saved);
  errno = saved;
}

O_UNUSED static int o_end(int status) {
  o_summary();
  o_observe();
  o_flush();
  return status;
}

#ifdef __cplusplus
}
#endif
