/* tiny: a program that does next to nothing, for what a profiler adds to starting and ending one. */
#include <stdlib.h>

int main(void) {
    void *volatile block = malloc(100);
    free(block);
    return 0;
}
