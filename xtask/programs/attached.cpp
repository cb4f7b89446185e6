// attached FILE THREADS WORK_NS PAUSE_US SECONDS: threads that allocate and free as a service does; each operation is a pair with WORK_NS of
// work between, and after each 32 of them the thread sleeps PAUSE_US. Every thread notes in FILE (mapped shared, two 64-bit words a
// thread) how many operations it has done, and the longest time between two of its looks at the clock but for the sleeps.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace {

struct Slot {
    std::atomic<uint64_t> operations;
    std::atomic<uint64_t> longest_ns;
};

constexpr int OPERATIONS_A_LOOK = 32;

Slot *slots;
uint64_t work_rounds;
long pause_us;
std::atomic<bool> over;
volatile uint64_t sink;

uint64_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

void work(uint64_t rounds) {
    uint64_t x = sink | 1;
    for (uint64_t i = 0; i < rounds; ++i) x = x * 6364136223846793005ull + 1442695040888963407ull; // each waits for the one before
    sink = x;
}

[[gnu::noinline]] void operation(unsigned size) {
    char *block = static_cast<char *>(malloc(size));
    block[0] = 1;
    asm volatile("" : : "r"(block) : "memory");
    work(work_rounds);
    free(block);
}

void *serve(void *place) {
    Slot &slot = slots[reinterpret_cast<intptr_t>(place)];
    uint64_t before = now();
    for (unsigned turn = 0; !over.load(std::memory_order_relaxed); ++turn) {
        for (int i = 0; i < OPERATIONS_A_LOOK; ++i) operation(16 + (turn + i) % 16 * 24);
        uint64_t after = now();
        slot.operations.store(slot.operations.load(std::memory_order_relaxed) + OPERATIONS_A_LOOK, std::memory_order_relaxed);
        if (after - before > slot.longest_ns.load(std::memory_order_relaxed)) slot.longest_ns.store(after - before, std::memory_order_relaxed);
        before = after;
        if (pause_us > 0) {
            usleep(pause_us);
            before = now();
        }
    }
    return nullptr;
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 6) return fprintf(stderr, "usage: attached FILE THREADS WORK_NS PAUSE_US SECONDS\n"), 2;
    const long threads = atol(argv[2]), work_ns = atol(argv[3]), seconds = atol(argv[5]);
    pause_us = atol(argv[4]);
    const uint64_t rounds = 20000000, start = now();
    work(rounds);
    work_rounds = work_ns == 0 ? 0 : std::max<uint64_t>(1, work_ns * rounds / (now() - start));
    const int file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, threads * sizeof(Slot)) != 0) return perror(argv[1]), 1;
    slots = static_cast<Slot *>(mmap(nullptr, threads * sizeof(Slot), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0));
    if (slots == MAP_FAILED) return perror("mmap"), 1;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 << 10);
    std::vector<pthread_t> all(threads);
    for (long i = 0; i < threads; ++i)
        if (pthread_create(&all[i], &attributes, serve, reinterpret_cast<void *>(i)) != 0) return perror("pthread_create"), 1;
    sleep(seconds);
    over = true;
    for (auto &thread : all) pthread_join(thread, nullptr);
    return 0;
}
