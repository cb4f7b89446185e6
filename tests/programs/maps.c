// The address space: mmap, munmap (whole, part, several at once), mremap in place and moved, MAP_FIXED over an old map,
// a file mapped, protection changed; noted so that the capture's map events can be compared.
#include "oracle.h"

#define P 4096ul
static void *map(size_t n) {
  void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  O_CHECK(p != MAP_FAILED);
  o_note(O_MMAP, p, n, NULL);
  return p;
}
static void unmap(void *p, size_t n) {
  O_CHECK(!munmap(p, n));
  o_note(O_MUNMAP, p, n, NULL);
}

int main(int argc, char **argv) {
  (void)argc;
  char *a = map(64 * P);
  memset(a, 1, 64 * P);
  unmap(a + 16 * P, 8 * P);
  unmap(a, 16 * P);
  char *b = mremap(a + 24 * P, 40 * P, 20 * P, 0);
  O_CHECK(b == a + 24 * P);
  o_note(O_MREMAP, b, 20 * P, a + 24 * P);
  char *c = mremap(b, 20 * P, 4000 * P, MREMAP_MAYMOVE);
  O_CHECK(c != MAP_FAILED && c[0] == 1);
  o_note(O_MREMAP, c, 4000 * P, b);
  char *d = mmap(c + 100 * P, 10 * P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  O_CHECK(d == c + 100 * P && d[0] == 0);
  o_note(O_MMAP, d, 10 * P, NULL);
  O_CHECK(!mprotect(c, P, PROT_READ));
  int fd = open(argv[0], O_RDONLY);
  O_CHECK(fd >= 0);
  char *f = mmap(NULL, 2 * P, PROT_READ, MAP_PRIVATE, fd, 0);
  O_CHECK(f != MAP_FAILED && !memcmp(f, "\177ELF", 4));
  o_note(O_MMAP, f, 2 * P, NULL);
  close(fd);
  unmap(f, 2 * P);
  errno = 77;
  O_CHECK(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
  O_CHECK(munmap((void *)1, P) == -1 && errno == EINVAL);
  errno = 0;
  return o_end(0); // c stays
}
