/* Targets that hound must be careful with. ARGV[1]:
   seccomp CALL ACTION  a filter gives ACTION (number) for CALL (number) and allows the rest
   vfork                a child made by vfork sleeps until its input ends
   shares               a child made with CLONE_VM sleeps
   namespaces           a process in new user, pid, mount and net namespaces; its parent prints its number
   receives FILTERED    waits in recv on a socket with a timeout of a minute; with 1 under a filter that allows all
   Prints "ready" (namespaces: "ready" then the number); ends with its input. */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static void ready(void) { printf("ready\n"); fflush(stdout); }
static int await(void *p) { char c; while (read(0, &c, 1) > 0) {} return 0; }
int main(int n, char **a) {
    static char stack[1 << 16];
    if (!strcmp(a[1], "seccomp")) {
        struct sock_filter f[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, atoi(a[2]), 0, 1),
            BPF_STMT(BPF_RET | BPF_K, strtoul(a[3], 0, 0)),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        };
        struct sock_fprog p = {4, f};
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p)) return 1;
        ready(); await(0);
    } else if (!strcmp(a[1], "vfork")) {
        ready();
        if (!vfork()) { char c; while (read(0, &c, 1) > 0) {} _exit(0); }
    } else if (!strcmp(a[1], "shares")) {
        clone(await, stack + sizeof stack, CLONE_VM | SIGCHLD, 0);
        ready(); await(0); wait(0);
    } else if (!strcmp(a[1], "receives")) {
        struct sock_filter all = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        struct sock_fprog program = {1, &all};
        struct timeval minute = {60, 0};
        int s[2]; char c;
        socketpair(AF_UNIX, SOCK_STREAM, 0, s);
        setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &minute, sizeof minute);
        if (atoi(a[2]) && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))) return 1;
        ready(); recv(s[0], &c, 1, 0);
    } else if (!strcmp(a[1], "namespaces")) {
        int all = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC;
        /* In a chroot the kernel makes no user namespaces; root can do without. */
        if (unshare(CLONE_NEWUSER | all) && unshare(all)) return 1;
        pid_t child = fork();
        if (!child) { prctl(PR_SET_PDEATHSIG, SIGKILL); if (chroot("/proc/self/fdinfo") || chdir("/")) _exit(1); await(0); _exit(0); }
        ready(); printf("%d\n", child); fflush(stdout);
        waitpid(child, 0, 0);
    }
    return 0;
}
