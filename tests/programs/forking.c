// A program with children that allocate, to be recorded with them. Orders, a line each, answered with "done LINE":
//   fork NAME SIZE   forks a child that, once told by "go", allocates 100 blocks of SIZE bytes, releases half of them, and waits
//   exec NAME SIZE   the same, but the child is this program anew (argument "child")
//   go               all children that wait do their work; the answer comes when they have
//   end              the children end with status 7, then the program with 0
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int orders[64][2], answers[64][2], children;
static pid_t pids[64];

__attribute__((noinline)) void *made_in_child(size_t size) {
  void *made = malloc(size);
  memset(made, 1, size); // so that malloc is called, not jumped to
  return made;
}

static void be_child(int in, int out, size_t size) {
  static void *kept[100];
  char order;
  while (read(in, &order, 1) == 1 && order == 'g') {
    for (int i = 0; i < 100; i++) {
      kept[i] = made_in_child(size);
      memset(kept[i], i, size);
    }
    for (int i = 0; i < 100; i += 2) free(kept[i]);
    if (write(out, "d", 1) != 1) _exit(9);
  }
  for (int i = 1; i < 100; i += 2)
    for (size_t k = 0; kept[i] && k < size; k++)
      if (((unsigned char *)kept[i])[k] != (unsigned char)i) _exit(8);
  _exit(7);
}

static void child(const char *size, int by_exec) {
  if (pipe(orders[children]) || pipe(answers[children])) exit(2);
  pid_t pid = fork();
  if (pid == 0) {
    int in = orders[children][0], out = answers[children][1];
    close(orders[children][1]);
    if (!by_exec) be_child(in, out, strtoul(size, NULL, 10));
    char in_text[16], out_text[16];
    snprintf(in_text, sizeof in_text, "%d", in);
    snprintf(out_text, sizeof out_text, "%d", out);
    execl("/proc/self/exe", "forked-child", "child", in_text, out_text, size, (char *)NULL);
    _exit(3);
  }
  pids[children++] = pid;
  printf("pid %d\n", (int)pid);
}

int main(int argc, char **argv) {
  if (argc == 5 && !strcmp(argv[1], "child")) be_child(atoi(argv[2]), atoi(argv[3]), strtoul(argv[4], NULL, 10));
  setvbuf(stdout, NULL, _IONBF, 0);
  puts("ready");
  char line[256], word[16], name[32], size[32];
  while (fgets(line, sizeof line, stdin)) {
    line[strcspn(line, "\n")] = 0;
    int words = sscanf(line, "%15s %31s %31s", word, name, size);
    if (words == 3) child(size, !strcmp(word, "exec"));
    if (!strcmp(line, "go"))
      for (int i = 0; i < children; i++) {
        char answer;
        if (write(orders[i][1], "g", 1) != 1 || read(answers[i][0], &answer, 1) != 1) return 4;
      }
    if (!strcmp(line, "end")) break;
    printf("done %s\n", line);
  }
  for (int i = 0; i < children; i++) {
    int status;
    if (write(orders[i][1], "e", 1) != 1) return 6;
    if (waitpid(pids[i], &status, 0) != pids[i] || !WIFEXITED(status) || WEXITSTATUS(status) != 7) return 5;
  }
  return 0;
}
