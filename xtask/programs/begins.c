// begins N: begins /bin/true N times, one after the other, each by fork and exec, and waits for it.
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
    for (int left = argc > 1 ? atoi(argv[1]) : 1; left > 0; left--) {
        pid_t child = fork();
        if (child < 0) return 1;
        if (child == 0) {
            execl("/bin/true", "true", (char *)0);
            _exit(127);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 0) return 2;
    }
    return 0;
}
