// Workers that make and await processes and threads, load libraries, block, and take signals.
#pragma once
#include "attach_torture.h"
#include "attach_torture_memory.h"

#include <condition_variable>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <spawn.h>
#include <sys/resource.h>
#include <thread>
#include <vector>

extern char **environ;

namespace torture {

// ---- children ----

inline void await(pid_t child, int wanted, const char *how) {
  int status = -1;
  pid_t r = waitpid(child, &status, 0); // nobody sends signals to this thread
  if (r != child) return fail("%s: waitpid is %d, errno %d", how, (int)r, errno);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != wanted) fail("%s: the child's status is %x, wanted exit %d", how, status, wanted);
}

// What a child allocates and checks; its exit status comes out of that.
inline int child_work(uint64_t from, int wanted) {
  Random random(from);
  uint64_t before = failures;
  std::vector<Block> held;
  for (int i = 0; i < 50; i++) {
    held.push_back(allocate(random));
    if (i % 3 == 0) resize(held[random.below(held.size())], random);
  }
  for (Block &b : held) release(b);
  return failures == before ? wanted : 199;
}

inline void step_fork(Worker &w) {
  int wanted = (int)w.random.below(100);
  uint64_t from = w.random.next();
  pid_t child = fork();
  if (child == 0) _exit(child_work(from, wanted));
  if (child < 0) return fail("fork failed: errno %d", errno);
  await(child, wanted, "fork");
  count.forks++;
}

inline void step_vfork(Worker &w) {
  volatile int wanted = (int)w.random.below(100);
  if (w.random.below(2)) {
    pid_t child = vfork();
    if (child == 0) _exit(wanted);
    if (child < 0) return fail("vfork failed: errno %d", errno);
    await(child, wanted, "vfork");
    count.vforks++;
    return;
  }
  char number[16];
  snprintf(number, sizeof number, "%d", (int)wanted);
  char *argv[] = {(char *)"attach_torture", (char *)"--child", number, nullptr};
  pid_t child;
  int r = posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv, environ);
  if (r) return fail("posix_spawn failed: %d", r);
  await(child, wanted, "posix_spawn");
  count.spawns++;
}

// ---- libraries and threads ----

inline void step_library(Worker &w) {
  if (!library) return (void)usleep(10000);
  void *handle = dlopen(library, w.random.below(2) ? RTLD_NOW : RTLD_LAZY);
  if (!handle) return fail("dlopen: %s", dlerror());
  auto work = (uint64_t(*)(uint64_t))dlsym(handle, "library_work");
  uint64_t n = w.random.below(1000);
  if (!work || work(n) != n * (n + 1) / 2) fail("the library computes wrongly");
  if (dlclose(handle)) fail("dlclose: %s", dlerror());
  count.dlopens++;
}

struct Late { // freed when its thread has ended
  Block block;
  ~Late() { release(block); }
};
inline thread_local Late late;

inline void step_threads(Worker &w) {
  uint64_t sums[4] = {0}, from = w.random.next();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++)
    threads.emplace_back([&sums, i, from] {
      Random random(from + (uint64_t)i);
      late.block = allocate(random);
      std::vector<Block> held;
      for (int k = 0; k < 20; k++) held.push_back(allocate(random));
      for (Block &b : held) sums[i] += b.size != 0, release(b);
    });
  for (auto &t : threads) t.join();
  for (uint64_t sum : sums)
    if (sum != 20) fail("a thread did %lu of 20", sum);
  count.threads += 4;
}

// ---- blocking calls: one thread wakes all that wait for a peer ----

class Waker {
public:
  void start() {
    thread = std::thread([this] { run(); });
  }
  void stop() {
    {
      std::lock_guard<std::mutex> hold(lock);
      ended = true;
    }
    changed.notify_all();
    thread.join();
  }
  uint64_t after(int ms, std::function<void()> what) {
    std::lock_guard<std::mutex> hold(lock);
    auto when = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    uint64_t ticket = ++last;
    orders.emplace(when, Order{ticket, std::move(what)});
    changed.notify_one();
    return ticket;
  }
  // Takes an order back; if it is being done, waits until it is.
  void cancel(uint64_t ticket) {
    std::unique_lock<std::mutex> hold(lock);
    for (auto i = orders.begin(); i != orders.end(); ++i)
      if (i->second.ticket == ticket) return (void)orders.erase(i);
    done.wait(hold, [&] { return doing != ticket; });
  }

private:
  struct Order {
    uint64_t ticket;
    std::function<void()> what;
  };
  void run() {
    std::unique_lock<std::mutex> hold(lock);
    while (!ended) {
      if (orders.empty()) {
        changed.wait(hold);
      } else if (orders.begin()->first > std::chrono::steady_clock::now()) {
        changed.wait_until(hold, orders.begin()->first);
      } else {
        Order order = std::move(orders.begin()->second);
        orders.erase(orders.begin());
        doing = order.ticket;
        hold.unlock();
        order.what();
        hold.lock();
        doing = 0;
        done.notify_all();
      }
    }
  }
  std::mutex lock;
  std::condition_variable changed, done;
  std::multimap<std::chrono::steady_clock::time_point, Order> orders;
  uint64_t last = 0, doing = 0;
  bool ended = false;
  std::thread thread;
};
inline Waker waker;

// Calls that go on by themselves after a handler with SA_RESTART.
inline bool goes_on(const char *name) {
  static const char *const names[] = {"read_pipe", "write_pipe", "read_eventfd", "read_timerfd", "wait4", "waitid", "flock", "fcntl_lock", "open_fifo"};
  for (const char *n : names)
    if (!strcmp(n, name)) return true;
  return false;
}

// How often this thread has gone to sleep. A call that is not stopped sleeps once; each stop adds the stop itself and the sleep after it.
inline long sleeps() {
  rusage usage;
  T_CHECK(!getrusage(RUSAGE_THREAD, &usage));
  return usage.ru_nvcsw;
}

inline void step_blocking(Worker &w) {
  const blocking *k = &blockings[w.random.below(BLOCKINGS)];
  bool may_time_out = k->modes & B_TIMES_OUT, may_be_woken = k->modes & B_WOKEN;
  bool woken = may_time_out && may_be_woken ? w.random.below(2) : may_be_woken;
  int ms = w.random.below(12) == 0 && !stopping ? 5000 : 1 + (int)w.random.below(80);
  // A socket's own time that begins anew at each stop of a hound that is killed might not be over before the visits are.
  if ((w.signals != none || k->modes & B_OF_SOCKET) && ms > 200) ms = 80;
  w.blocked_in = k->name;
  blocker b;
  uint64_t handlers = w.handlers;
  double start = b_now_ms(), starved = b_starved_ms();
  b_begin(k, &b, ms);
  uint64_t ticket = woken ? waker.after(ms, [k, &b] { k->wake(&b); }) : 0;
  long slept = sleeps();
  errno = 0;
  long value = k->wait(&b, woken ? B_FOREVER : ms);
  int error = errno;
  slept = sleeps() - slept;
  double elapsed = b_now_ms() - start;
  starved = b_starved_ms() - starved;
  const char *mode = woken ? "woken" : "timeout";
  bool interrupted = value == -1 && error == EINTR;
  if (interrupted && w.signals != none && w.handlers != handlers && !(w.signals == restarting && goes_on(k->name))) {
    count.eintr_expected++;
  } else if (interrupted && w.handlers == handlers) {
    // Somebody stopped the thread and left it so. Counted apart: nothing else can be expected of a hound that is killed in that moment.
    tell("%s (%s, %d ms, role %s): EINTR without a signal, after %.1f ms", k->name, mode, ms, w.role, elapsed);
    count.eintr_foreign++;
  } else if (!b_right(k, &b, woken, value, error)) {
    fail("%s (%s, %d ms, role %s): returned %ld, errno %d, after %.1f ms; %lu handlers ran meanwhile", k->name, mode, ms, w.role, value,
         value == -1 ? error : 0, elapsed, w.handlers - handlers);
  } else {
    if (elapsed + k->may_be_early_ms < ms) fail("%s (%s): %d ms were over after %.1f", k->name, mode, ms, elapsed);
    if (b_ends_by_timer(k, woken)) {
      // Never earlier; and later only where the time is the socket's and hound was killed, by what had been slept at the stops (docs/safety.md).
      double late = elapsed - starved - ms;
      if (k->modes & B_OF_SOCKET) late -= (double)ms * (double)(slept / 2);
      if (late > late_limit_ms) tell("late: %s (%s): %d ms took %.1f, of which it waited %.1f for a processor", k->name, mode, ms, elapsed, starved);
      latest.note(k->name, late);
    }
    (woken ? count.blocked_woken : count.blocked_timed_out)++;
  }
  if (woken) waker.cancel(ticket);
  if (value >= 0 && woken && k->woken == B_ANY_FD) close((int)value);
  if (interrupted && b.child > 0)
    while (waitpid(b.child, nullptr, 0) < 0 && errno == EINTR) {}
  b_end(k, &b);
}

// ---- signals ----

inline void handle(int, siginfo_t *info, void *) {
  int saved = errno;
  Worker *w = self;
  if (!w) return fail("a handler ran in a thread that gets no signals");
  w->handlers.fetch_add(1, std::memory_order_relaxed);
  if (info->si_code == SI_QUEUE) {
    if (info->si_value.sival_ptr != w) fail("a queued signal came to another thread or with another value");
    w->handled.fetch_add(1, std::memory_order_relaxed);
  }
  errno = saved;
}

constexpr int restarting_signal = SIGUSR1, interrupting_signal = SIGUSR2;
inline int queued_signal(const Worker &w) { return SIGRTMIN + (w.signals == restarting ? 3 : 4); }

inline void install_handlers() {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = handle;
  for (int sig : {restarting_signal, interrupting_signal, SIGRTMIN + 3, SIGRTMIN + 4}) {
    action.sa_flags = SA_SIGINFO | (sig == restarting_signal || sig == SIGRTMIN + 3 ? SA_RESTART : 0);
    T_CHECK(!sigaction(sig, &action, nullptr));
  }
}

// One plain signal and one queued one; the kernel refuses the latter when its queue is full.
inline void send_signals(Worker &w) {
  syscall(SYS_tgkill, getpid(), w.tid.load(), w.signals == restarting ? restarting_signal : interrupting_signal);
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_code = SI_QUEUE;
  info.si_pid = getpid();
  info.si_value.sival_ptr = &w;
  w.sent.fetch_add(1);
  if (syscall(SYS_rt_tgsigqueueinfo, getpid(), w.tid.load(), queued_signal(w), &info)) w.sent.fetch_sub(1);
  count.signals_sent.fetch_add(2, std::memory_order_relaxed);
}

inline void step_signalled(Worker &w) {
  if (w.random.below(4)) return step_memory(w);
  step_blocking(w);
}

} // namespace torture
