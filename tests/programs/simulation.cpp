// A program that leaks in several ways beside much that does not, for the case study of scripts: what is never released, what is released at
// the very end only, a cache of bounded size, what leaks now and then among many temporaries, and vectors that grow. Prints how many blocks
// each has made, and of its times those that decide whether the study's shares of the whole time hold.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <initializer_list>

#define NOINLINE __attribute__((noinline))

namespace {
double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}
}  // namespace

namespace alloc {
namespace raw_vec {
NOINLINE void *finish_grow(void *old, size_t bytes) {
    void *grown = realloc(old, bytes);
    if (!grown) abort();
    return grown;
}
}  // namespace raw_vec

namespace vec {
// As Rust's: doubles from four elements on.
struct Vec {
    void **elements = nullptr;
    size_t count = 0, capacity = 0;

    NOINLINE void push(void *element) {
        if (count == capacity) {
            capacity = capacity ? capacity * 2 : 4;
            elements = static_cast<void **>(raw_vec::finish_grow(elements, capacity * sizeof(void *)));
        }
        elements[count++] = element;
    }
};

NOINLINE void *resize(size_t bytes) {
    void *block = malloc(bytes);
    if (!block) abort();
    memset(block, 1, bytes);
    return block;
}
}  // namespace vec
}  // namespace alloc

namespace simulation {
using alloc::vec::Vec;
using alloc::vec::resize;

const int ROUNDS = 855;
const size_t CACHED = 432;
unsigned made_leaked, made_bounded, made_both, leaked_both, made_at_end, made_temporary;
volatile uint8_t sink;
uint32_t state = 12345;

uint32_t draw(uint32_t below) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % below;
}

NOINLINE void allocate_linear_leak_never_deallocated() {
    sink += *static_cast<uint8_t *>(resize(2000));
    made_leaked++;
}

NOINLINE void allocate_linear_leak_deallocated_at_the_end(Vec &kept) {
    kept.push(resize(800));
    made_at_end++;
}

void *cache[CACHED];

NOINLINE void allocate_bounded_leak() {
    size_t place = made_bounded < CACHED ? made_bounded : draw(CACHED);
    free(cache[place]);
    cache[place] = resize(1500);
    made_bounded++;
}

NOINLINE void allocate_both_temporary_and_linear_leak() {
    void *block = resize(1200);
    if (made_both++ % 100 == 50) {
        leaked_both++;
        return;
    }
    free(block);
}

NOINLINE void allocate_temporary() {
    void *block = resize(100 + draw(8000));
    made_temporary++;
    free(block);
}

NOINLINE void note(Vec &notes) { notes.push(nullptr); }

NOINLINE void remember(Vec &memories) { memories.push(&memories); }
}  // namespace simulation

int main() {
    using namespace simulation;
    double began = now(), longest = 0;
    Vec kept, notes, memories;
    for (int round = 0; round < ROUNDS; round++) {
        double from = now();
        allocate_linear_leak_never_deallocated();
        allocate_linear_leak_deallocated_at_the_end(kept);
        allocate_bounded_leak();
        for (int i = 0; i < 20; i++) {
            allocate_both_temporary_and_linear_leak();
            allocate_temporary();
        }
        note(notes);
        if (round % 2) remember(memories);
        double took = now() - from;
        if (took > longest) longest = took;
        // The shape is one over time: each round takes some.
        timespec pause = {0, 4000000};
        nanosleep(&pause, nullptr);
    }
    double ending = now();
    for (size_t i = 0; i < kept.count; i++) free(kept.elements[i]);
    for (Vec *vec : {&kept, &notes, &memories}) free(vec->elements);
    double ended = now();
    printf("leaked %u\nbounded %u\nboth %u %u\nat_end %u\ntemporary %u\n", made_leaked, made_bounded, made_both, leaked_both, made_at_end, made_temporary);
    printf("began %.6f longest %.6f ending %.6f ended %.6f\n", began, longest, ending, ended);
    return 0;
}
