// threads COUNT: COUNT threads allocate a little and then all live at once, for the memory that a profiler keeps for each thread.
#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <vector>

namespace {

pthread_barrier_t all_here;

void *live(void *) {
    void *blocks[64];
    for (auto &block : blocks) block = malloc(100);
    pthread_barrier_wait(&all_here); // every thread holds its blocks
    pthread_barrier_wait(&all_here); // until main has seen that
    for (auto &block : blocks) free(block);
    return nullptr;
}

} // namespace

int main(int argc, char **argv) {
    const unsigned count = argc > 1 ? atoi(argv[1]) : 1;
    pthread_barrier_init(&all_here, nullptr, count + 1);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 << 10);
    std::vector<pthread_t> threads(count);
    for (auto &thread : threads)
        if (pthread_create(&thread, &attributes, live, nullptr) != 0) return perror("pthread_create"), 1;
    pthread_barrier_wait(&all_here);
    pthread_barrier_wait(&all_here);
    for (auto &thread : threads) pthread_join(thread, nullptr);
    return 0;
}
