// A thread that stands just before the system call of an exec, as far as anybody can see: the third argument is the environment that it is to be
// given. It goes on at SIGUSR2. At SIGUSR1 it takes the environment from a call that fails: whoever is between leaves there what it has made
// of it. Prints "ready", then "holds" or "as given". Ends at SIGTERM.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static volatile int take, release, over;
static void on_signal(int signal) { *(signal == SIGUSR1 ? &take : signal == SIGUSR2 ? &release : &over) = 1; }

// The kernel leaves this register as it was.
__attribute__((noinline)) static char **third_argument_of(char *path, char **words, char **environment) {
  int (*volatile called)(const char *, char *const[], char *const[]) = execve;
  long result = (long)called;
  __asm__ volatile("mov %%rsp, %%rbx; sub $128, %%rsp; and $-16, %%rsp; call *%%rax; mov %%rbx, %%rsp"
                   : "+a"(result), "+d"(environment), "+D"(path), "+S"(words)
                   :
                   : "rbx", "rcx", "r8", "r9", "r10", "r11", "memory");
  return environment;
}

// What is left of the call on the part of the stack that is used from here on would look as if somebody were still at work.
__attribute__((noinline)) static void clear(void) {
  char used[16384];
  for (unsigned i = 0; i < sizeof used; i++) ((volatile char *)used)[i] = 0;
}

static void *holds(void *arg) {
  char *words[] = {"nowhere", NULL}, *environment[] = {"A=1", NULL};
  (void)arg;
  while (!take) usleep(1000);
  char **given = third_argument_of("/nowhere/program", words, environment);
  clear();
  printf(given == environment ? "as given\n" : "holds\n");
  fflush(stdout);
  __asm__ volatile("1: pause; cmpl $0, (%0); je 1b" : : "r"(&release), "d"(given) : "memory");
  while (!over) usleep(1000);
  return NULL;
}

int main(void) {
  signal(SIGUSR1, on_signal), signal(SIGUSR2, on_signal), signal(SIGTERM, on_signal);
  pthread_t thread;
  pthread_create(&thread, NULL, holds, NULL);
  printf("ready\n");
  fflush(stdout);
  while (!over) free(malloc(100)), usleep(1000);
  pthread_join(thread, NULL);
  return 0;
}
