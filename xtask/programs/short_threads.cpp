// short_threads N: so many threads, one after the other, of which each makes and releases a few blocks and leaves one to the next.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

int main(int argc, char **argv) {
  const long threads = argc > 1 ? std::atol(argv[1]) : 100000;
  std::string *left = nullptr;
  unsigned long bytes = 0;
  for (long i = 0; i < threads; i++) {
    std::thread([&, i] {
      std::vector<std::string> some;
      for (int j = 0; j < 8; j++) some.emplace_back(40 + (i + j) % 60, 'x');
      delete left;
      left = new std::string(some.back());
      bytes += left->size();
    }).join();
  }
  delete left;
  std::printf("%lu\n", bytes);
}
