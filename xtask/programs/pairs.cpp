// pairs SHAPE DEPTH PAIRS: what one malloc+free pair costs below a call path of a given depth. Prints nanoseconds a pair.
//
//   same    the path stands still; one call site allocates in a loop
//   leaves  three leaf functions allocate in turn below a path that stands still
//   root    the frame next to main alternates, everything below it is called again for each pair
//   popped  the whole path returns and is called again for each pair
//
// What the path itself costs is in the figure of the unprofiled run too: only the difference between two runs means something.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#define NOINLINE __attribute__((noinline, noclone))

namespace {

using Bottom = long (*)(long);

/// Makes the compiler believe that the block is used, so that the pair is not optimised away, and that this is no tail call.
inline void *used(void *block) {
    asm volatile("" : "+r"(block) : : "memory");
    return block;
}

template <int Level> NOINLINE long descend(Bottom bottom, long pairs) {
    long done;
    if constexpr (Level == 0)
        done = bottom(pairs);
    else
        done = descend<Level - 1>(bottom, pairs);
    asm volatile("" : "+r"(done) : "i"(Level) : "memory"); // work after the call: no tail call, and no two levels are alike
    return done;
}

NOINLINE long one_site(long pairs) {
    for (long i = 0; i < pairs; i++) free(used(malloc(64)));
    return pairs;
}

NOINLINE void *leaf_a() { return used(malloc(64)); }
NOINLINE void *leaf_b() { return used(malloc(72)); }
NOINLINE void *leaf_c() { return used(malloc(80)); }

NOINLINE long three_leaves(long pairs) {
    for (long i = 0; i < pairs; i += 3) {
        free(leaf_a());
        free(leaf_b());
        free(leaf_c());
    }
    return pairs;
}

template <int Depth> NOINLINE long root_a() {
    long done = descend<Depth - 2>(one_site, 1);
    asm volatile("" : "+r"(done));
    return done;
}

template <int Depth> NOINLINE long root_b() {
    long done = descend<Depth - 2>(one_site, 1);
    asm volatile("" : "+r"(done) : : "memory");
    return done;
}

template <int Depth> NOINLINE long run(const char *shape, long pairs) {
    long done = 0;
    if (!strcmp(shape, "same")) return descend<Depth - 1>(one_site, pairs);
    if (!strcmp(shape, "leaves")) return descend<Depth - 2>(three_leaves, pairs);
    if (!strcmp(shape, "root"))
        for (long i = 0; i < pairs; i += 2) done += root_a<Depth>() + root_b<Depth>();
    else if (!strcmp(shape, "popped"))
        for (long i = 0; i < pairs; i++) done += descend<Depth - 1>(one_site, 1);
    return done;
}

long run_at(int depth, const char *shape, long pairs) {
    switch (depth) {
    case 5: return run<5>(shape, pairs);
    case 30: return run<30>(shape, pairs);
    case 100: return run<100>(shape, pairs);
    default: return 0;
    }
}

double now_ns() {
    timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1e9 + at.tv_nsec;
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: pairs same|leaves|root|popped 5|30|100 PAIRS\n");
        return 2;
    }
    const int depth = atoi(argv[2]);
    const long pairs = atol(argv[3]);
    if (run_at(depth, argv[1], 1000) == 0) { // also warms the caches, and a profiler's
        fprintf(stderr, "pairs: no shape %s at depth %s\n", argv[1], argv[2]);
        return 2;
    }
    const double start = now_ns();
    run_at(depth, argv[1], pairs);
    printf("%.3f\n", (now_ns() - start) / pairs);
    return 0;
}
