// events PAIRS: PAIRS allocations and as many frees from some thousands of call paths, with about 100,000 blocks alive at any time: a capture of
// 2 * PAIRS events that resembles a busy service rather than a loop.
#include <cstdio>
#include <cstdlib>
#include <vector>

#define NOINLINE __attribute__((noinline, noclone))

namespace {

unsigned next_random() {
    static unsigned state = 2463534242u;
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

/// Each level calls the next from one of two places, chosen by a bit of `path`: twelve levels give 4096 call paths.
template <int Level> NOINLINE void *descend(unsigned path, size_t size) {
    void *block;
    if constexpr (Level == 0)
        block = malloc(size);
    else if (path & 1)
        block = descend<Level - 1>(path >> 1, size);
    else
        block = descend<Level - 1>(path >> 1, size + 1);
    asm volatile("" : "+r"(block) : "i"(Level) : "memory");
    return block;
}

} // namespace

int main(int argc, char **argv) {
    const long pairs = argc > 1 ? atol(argv[1]) : 1000000;
    std::vector<void *> alive(100000);
    for (long i = 0; i < pairs; i++) {
        const unsigned random = next_random();
        void *&slot = alive[random % alive.size()];
        free(slot);
        // The product of two random numbers favours some paths, as programs do.
        const unsigned skewed = (random >> 8) % 64 * ((random >> 14) % 64);
        slot = descend<12>(skewed, 16 + (random >> 16) % 300);
    }
    for (void *block : alive) free(block);
    printf("%ld pairs\n", pairs);
    return 0;
}
