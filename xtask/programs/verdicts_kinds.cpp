// Programs of C++ for `cargo xtask verdicts`: "kinds KIND SECONDS". They end by _Exit: what they keep is there at the end of the capture.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#define SITE __attribute__((noinline))

namespace {

using Clock = std::chrono::steady_clock;
std::mt19937 dice(7);

/// Objects that are handed back are kept for the next who asks.
class Pool {
    std::vector<std::unique_ptr<char[]>> idle;

  public:
    SITE std::unique_ptr<char[]> get() {
        if (idle.empty()) return std::make_unique<char[]>(900);
        auto one = std::move(idle.back());
        idle.pop_back();
        return one;
    }
    SITE void put(std::unique_ptr<char[]> one) { idle.push_back(std::move(one)); }
};

/// As many objects are out at once as chance will have it; the pool grows to what was the most.
void pool(int turn) {
    static Pool objects;
    static std::vector<std::unique_ptr<char[]>> out;
    if (out.size() < 400 && dice() % 100 < 55) out.push_back(objects.get());
    if (!out.empty() && dice() % 100 < 50) {
        std::swap(out[dice() % out.size()], out.back());
        objects.put(std::move(out.back()));
        out.pop_back();
    }
    if (turn % 1000 == 0) out.clear(); // some are thrown away
}

/// Four threads that take work from a queue; now and then one ends, and another takes its place.
class Workers {
    std::mutex lock;
    std::condition_variable wake;
    std::deque<std::function<void()>> jobs;
    std::map<std::thread::id, std::thread> threads;
    std::promise<std::thread::id> ended;

    SITE void work() {
        for (;;) {
            std::unique_lock held(lock);
            wake.wait(held, [&] { return !jobs.empty(); });
            auto job = std::move(jobs.front());
            jobs.pop_front();
            held.unlock();
            if (!job) return ended.set_value(std::this_thread::get_id());
            job();
        }
    }

  public:
    SITE void run(std::function<void()> job) {
        std::lock_guard held(lock);
        jobs.push_back(std::move(job));
        wake.notify_one();
    }
    SITE void keep(size_t number) {
        while (threads.size() < number) {
            std::thread one([this] { work(); });
            const auto id = one.get_id();
            threads[id] = std::move(one);
        }
    }
    SITE void replace() {
        ended = {};
        run({}); // whoever takes it ends
        const auto found = threads.find(ended.get_future().get());
        found->second.join();
        threads.erase(found);
    }
};

void threads(int turn) {
    static Workers workers;
    workers.keep(4);
    auto answer = std::make_shared<std::promise<std::string>>();
    auto waits = answer->get_future();
    workers.run([answer, turn] { answer->set_value(std::string(100 + turn % 300, 'x')); });
    waits.get();
    if (turn % 500 == 499) workers.replace();
}

/// All users that ever came, by name; nobody takes them out.
SITE void remember_user(int turn) {
    static std::map<std::string, std::string> users;
    users["user number " + std::to_string(turn)] = std::string(60, 'u');
}

/// The same, in a table that makes itself new as it grows.
SITE void remember_session(int turn) {
    static std::unordered_map<int, long> sessions;
    sessions[turn] = turn;
}

/// One array of all, which is replaced by one of twice the size when it is full.
SITE void remember_measure(int turn) {
    static std::vector<double> measures;
    for (int times = 0; times < 5; times++) measures.push_back(turn + times);
}

/// A cache beside it, of the last 300.
SITE void cache(int turn) {
    static std::map<int, std::string> pages;
    pages[turn] = std::string(200 + turn % 100, 'p');
    if (pages.size() > 300) pages.erase(pages.begin());
}

} // namespace

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    const std::string kind = argv[1];
    const std::map<std::string, void (*)(int)> kinds = {{"pool", pool}, {"threads", threads}, {"map", remember_user}, {"table", remember_session}, {"vector", remember_measure}};
    const auto found = kinds.find(kind);
    if (found == kinds.end()) return 2;
    const auto end = Clock::now() + std::chrono::duration<double>(atof(argv[2]));
    int turn = 0;
    for (; Clock::now() < end; turn++) {
        cache(turn);
        found->second(turn);
        std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
    printf("turns %d\n", turn);
    fflush(stdout);
    _Exit(0);
}
