// What all workers of the torture share: counters, failures, random numbers, the list of workers.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1
#endif
#include "attach_blocking.h"

#include <atomic>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>

namespace torture {

inline std::atomic<bool> stopping{false};
inline std::atomic<bool> resting{false}; // workers give back what they hold, and wait
inline std::atomic<uint64_t> failures{0};
inline uint64_t seed = 1;
inline double late_limit_ms = 2500;
inline const char *library = nullptr;

inline void say(const char *format, va_list list) {
  char text[512];
  int n = vsnprintf(text, sizeof text - 1, format, list);
  if (n > (int)sizeof text - 2) n = (int)sizeof text - 2;
  text[n] = '\n';
  ssize_t written = ::write(2, text, (size_t)n + 1);
  (void)written;
}
// Says something on standard error.
__attribute__((format(printf, 1, 2))) inline void tell(const char *format, ...) {
  va_list list;
  va_start(list, format);
  say(format, list);
  va_end(list);
}
// Says what is wrong, and goes on: the program ends with status 1.
__attribute__((format(printf, 1, 2))) inline void fail(const char *format, ...) {
  if (failures.fetch_add(1) > 100) return;
  va_list list;
  va_start(list, format);
  say(format, list);
  va_end(list);
}
#define T_CHECK(cond) ((cond) ? (void)0 : torture::fail("%s:%d: not so: %s (errno %d)", __FILE__, __LINE__, #cond, errno))

// What was done, by name; each is printed at the end.
#define T_COUNTERS(X) \
  X(allocations) X(frees) X(handed_over) X(failed_allocations) X(thrown) X(jumped) X(forks) X(vforks) X(spawns) X(dlopens) X(threads) \
  X(signals_sent) X(signals_handled) X(eintr_expected) X(eintr_foreign) X(blocked_timed_out) X(blocked_woken) X(arena_walks) X(loader_walks) X(register_spins) \
  X(register_calls) X(mask_checks)
struct Counters {
#define X(name) std::atomic<uint64_t> name{0};
  T_COUNTERS(X)
#undef X
};
inline Counters count;

struct Random {
  uint64_t state;
  explicit Random(uint64_t from) : state(from * 0x9e3779b97f4a7c15ull + 88172645463325252ull) { next(); }
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
  uint64_t below(uint64_t n) { return next() % n; }
};

enum Signals { none, restarting, interrupting };

struct Worker {
  const char *role = "";
  void (*step)(Worker &) = nullptr;
  Signals signals = none;
  int index = 0;
  Random random{1};
  pthread_t thread{};
  std::atomic<pid_t> tid{0};
  std::atomic<uint64_t> progress{0};
  std::atomic<uint64_t> sent{0}, handled{0}; // queued signals: none may be lost
  std::atomic<uint64_t> handlers{0};         // every handler's run
  std::atomic<bool> done{false}, rests{false};
  std::atomic<const char *> blocked_in{""}; // the last of its calls that block
  void *own = nullptr; // what the role keeps
};

inline thread_local Worker *self = nullptr;

// Longest a call came back behind its time, and which.
struct Latest {
  std::atomic<uint64_t> us{0};
  std::atomic<const char *> name{""};
  void note(const char *which, double ms) {
    uint64_t now = ms <= 0 ? 0 : (uint64_t)(ms * 1000), before = us.load();
    while (now > before && !us.compare_exchange_weak(before, now)) {}
    if (now > before) name = which;
  }
};
inline Latest latest;

inline uint64_t kernel_mask() {
  uint64_t mask = 0;
  syscall(SYS_rt_sigprocmask, SIG_BLOCK, nullptr, &mask, sizeof mask);
  return mask;
}

} // namespace torture
