// handoff BLOCKS: four producers allocate, four consumers free what the producers made. Blocks travel in batches through one bounded queue,
// so that the lock is taken once for 256 blocks and the allocator is what is measured.
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace {

constexpr int PRODUCERS = 4, CONSUMERS = 4;
constexpr size_t BATCH = 256, QUEUE = 64;

struct Batch {
    void *blocks[BATCH];
};

class Queue {
    std::mutex lock;
    std::condition_variable not_full, not_empty;
    std::deque<Batch *> batches;
    int producing = PRODUCERS;

  public:
    void push(Batch *batch) {
        std::unique_lock held(lock);
        not_full.wait(held, [&] { return batches.size() < QUEUE; });
        batches.push_back(batch);
        not_empty.notify_one();
    }
    void producer_done() {
        std::unique_lock held(lock);
        if (--producing == 0) not_empty.notify_all();
    }
    /// The next batch; null once every producer is done and nothing is left.
    Batch *pop() {
        std::unique_lock held(lock);
        not_empty.wait(held, [&] { return !batches.empty() || producing == 0; });
        if (batches.empty()) return nullptr;
        Batch *batch = batches.front();
        batches.pop_front();
        not_full.notify_one();
        return batch;
    }
};

void produce(Queue &queue, long batches) {
    for (long i = 0; i < batches; i++) {
        Batch *batch = new Batch;
        for (size_t j = 0; j < BATCH; j++) {
            char *block = static_cast<char *>(malloc(16 + (i * 31 + j * 7) % 240));
            block[0] = static_cast<char>(j);
            batch->blocks[j] = block;
        }
        queue.push(batch);
    }
    queue.producer_done();
}

void consume(Queue &queue, long &freed) {
    while (Batch *batch = queue.pop()) {
        for (void *block : batch->blocks) free(block);
        freed += BATCH;
        delete batch;
    }
}

} // namespace

int main(int argc, char **argv) {
    const long batches = (argc > 1 ? atol(argv[1]) : 1000000) / PRODUCERS / static_cast<long>(BATCH);
    Queue queue;
    std::vector<std::thread> threads;
    long freed[CONSUMERS] = {};
    for (int i = 0; i < CONSUMERS; i++) threads.emplace_back([&, i] { consume(queue, freed[i]); });
    for (int i = 0; i < PRODUCERS; i++) threads.emplace_back([&] { produce(queue, batches); });
    for (auto &thread : threads) thread.join();
    printf("%ld blocks handed over\n", freed[0] + freed[1] + freed[2] + freed[3]);
    return 0;
}
