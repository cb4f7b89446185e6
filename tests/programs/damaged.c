// Unwind tables of a loaded library overwritten with noise, differently in each of many children's worth of rounds: the profiler reads
// them inside this process, at its first sight of each return address. Argument: the library.
#define O_NO_STACKS
#include "oracle.h"

typedef void *(*maker)(size_t);
typedef void *(*entry)(maker, size_t, int);
static uint64_t made;

static void *make(size_t n) {
  made++;
  return o_malloc(n);
}

static int damage(struct dl_phdr_info *info, size_t size, void *seed) {
  (void)size;
  if (!strstr(info->dlpi_name, "damaged")) return 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *h = &info->dlpi_phdr[i];
    if (h->p_type != PT_GNU_EH_FRAME) continue;
    // The search table and, behind it, the entries themselves; what follows in the segment is only read by unwinders too.
    unsigned char *start = (unsigned char *)(info->dlpi_addr + h->p_vaddr);
    size_t bytes = h->p_memsz + 600;
    uintptr_t page = (uintptr_t)start & ~4095ul;
    O_CHECK(!mprotect((void *)page, 8192, PROT_READ | PROT_WRITE));
    uint64_t x = *(uint64_t *)seed;
    for (size_t at = 8; at < bytes; at++) {
      x = x * 6364136223846793005ull + 1442695040888963407ull;
      // The header's first words stay, or nothing behind them would be read at all.
      if ((x >> 33) % 3 == 0 && at >= 12) start[at] ^= (unsigned char)(x >> 40), o_head->fact[1]++;
    }
    O_CHECK(!mprotect((void *)page, 8192, PROT_READ));
  }
  return 0;
}

int main(int argc, char **argv) {
  O_CHECK(argc == 2);
  for (uint64_t round = 1; round <= 40; round++) {
    void *library = dlopen(argv[1], RTLD_NOW);
    O_CHECK(library);
    entry in = (entry)dlsym(library, "damaged_entry");
    dl_iterate_phdr(damage, &round);
    for (int depth = 0; depth < 10; depth++) o_free(in(make, 100 + depth, depth));
    dlclose(library);
  }
  o_head->fact[0] = made;
  return 0;
}
