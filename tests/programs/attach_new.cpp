// A C++ library that allocates by every form of operator new and delete; opened late, as attach_library.c.
#include <cstdint>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {
struct alignas(64) Wide {
  char bytes[128];
};
void *volatile last; // what is not looked at could be left out by the compiler

template <typename T> T *seen(T *p) {
  last = p;
  return static_cast<T *>(last);
}
} // namespace

extern "C" uint64_t library_work(uint64_t n) {
  delete seen(new uint64_t(n));
  delete[] seen(new uint64_t[n]);
  delete seen(new (std::nothrow) uint64_t(n));
  delete[] seen(new (std::nothrow) uint64_t[n]);
  delete seen(new Wide);
  delete[] seen(new Wide[3]);
  ::operator delete(seen(::operator new(100)), std::size_t{100});
  ::operator delete[](seen(::operator new[](200)), std::size_t{200});
  ::operator delete(seen(::operator new(300, std::align_val_t{256}, std::nothrow)), std::align_val_t{256}, std::nothrow);
  ::operator delete[](seen(::operator new[](400, std::align_val_t{256}, std::nothrow)), std::align_val_t{256}, std::nothrow);
  std::vector<std::string> words;
  for (uint64_t i = 0; i < n; i++) words.push_back(std::string(40 + i, 'x'));
  uint64_t sum = 0;
  try {
    for (uint64_t i = 1;; i++) {
      if (i > n) throw std::runtime_error(std::string(100, 'e'));
      sum += i;
    }
  } catch (const std::runtime_error &) {
  }
  return sum;
}
extern "C" void *library_malloc(size_t size) {
  void *block = malloc(size);
  last = block;
  return block;
}
extern "C" void library_free(void *block) { free(block); }
