// Steers its recording by hound.h: a block that is recorded, one that is not, a marker, and one more that is. Compiled as C and as C++.
#include "../../preload/api/include/hound.h"

#include <stdio.h>
#include <stdlib.h>

static void block(size_t size) {
    void *volatile made = malloc(size);
    free(made);
}

int main(void) {
    block(2001);
    hound_stop();
    block(2002);
    hound_start();
    hound_set_marker(77);
    block(2003);
    hound_sync();
    puts(hound_is_there() ? "hound is there" : "nobody is there");
    return 0;
}
