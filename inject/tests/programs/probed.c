// Calls one function at a time, as often as it is told: lines "LETTER COUNT", answered with "y". Allocates nothing else.
#define _GNU_SOURCE
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <dlfcn.h>

enum { MOST = 4096 };
static void *block[MOST];
static char pool[1 << 16];
static unsigned long taken;
__attribute__((noinline, noclone)) void *pool_get(unsigned long size) { return pool + ((taken += size) & 0xff00); }
__attribute__((noinline, noclone)) void pool_put(void *one) { *(volatile char *)one = 0; taken++; }
static void *volatile keep; // null, and the compiler must not know it

int main(int argc, char **argv) {
    char line[64];
    write(1, "r", 1);
    for (;;) {
        int got = read(0, line, sizeof line - 1);
        if (got <= 0) return 0;
        line[got] = 0;
        int count = atoi(line + 2);
        for (int n = 0; n < count; n++) {
            void **at = &block[n];
            switch (line[0]) {
            case 'm': *at = malloc(n % 3000 + 1); break;
            case 'c': *at = calloc(n % 7 + 1, 40); break;
            case 'r': *at = realloc(*at, n % 5000 + 10); break;
            case 'R': *at = realloc(keep, n + 1); break;
#ifndef NO_REALLOCARRAY
            case 'A': *at = reallocarray(*at, n + 3, 7); break;
#endif
            case 'a': *at = aligned_alloc(64, 64 * (n % 9 + 1)); break;
            case 'p': if (posix_memalign(at, 128, n + 1)) return 1; break;
            case 'f': free(*at); *at = 0; break;
            case '0': free(keep); break;
            case 'g': *at = pool_get(n); break;
            case 'q': pool_put(*at); *at = 0; break;
#ifndef STATIC
            case 'l': if (!dlopen(argv[1], RTLD_NOW)) return 3; break;
#endif
            default: return 2;
            }
        }
        write(1, "y", 1);
    }
}
