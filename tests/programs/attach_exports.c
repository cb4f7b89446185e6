// Calls every allocating function that a library exports, found by name, and notes each block. To be attached to; the library (mimalloc,
// jemalloc, tcmalloc) is linked before libc. Lines on standard input: call, end. Each function is one phase-less pair of notes: block made,
// block freed. Facts [0] and [2..4] tell the phase as in attach_target.c; [40] how many functions were called.
#define O_CAP (1u << 12)
#define O_NO_HASH
#define O_NO_STACKS
extern char __start_oracle_text[], __stop_oracle_text[];
#define O_OWN_START __start_oracle_text
#define O_OWN_END __stop_oracle_text
#include "oracle.h"
#include <limits.h>

#define OWN __attribute__((section("oracle_text"), noinline))
typedef uint64_t (*any)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
static uint64_t called, phases;
static void *heap;

// How a function takes its arguments: S the size, N a count, A an alignment, O an offset, H the heap, B a block to resize, F flags, T a
// text, L a length, P a path, 0 a null, X a pointer that may be null, and what comes back: p the block, o an errno with the block behind
// the first argument, r the same with the old block there.
struct call {
  const char *name, *arguments;
  char back;
  enum o_op op;
};
static const struct call CALLS[] = {
    {"malloc", "S", 'p', O_MALLOC}, {"calloc", "NS", 'p', O_CALLOC}, {"realloc", "BS", 'p', O_REALLOC},
    {"reallocarray", "BNS", 'p', O_REALLOCARRAY}, {"reallocf", "BS", 'p', O_REALLOC}, {"memalign", "AS", 'p', O_MEMALIGN},
    {"aligned_alloc", "AS", 'p', O_ALIGNED_ALLOC}, {"posix_memalign", "0AS", 'o', O_POSIX_MEMALIGN}, {"valloc", "S", 'p', O_VALLOC},
    {"pvalloc", "S", 'p', O_PVALLOC}, {"reallocarr", "0NS", 'r', O_REALLOCARRAY}, {"_aligned_malloc", "AS", 'p', O_ALIGNED_ALLOC},
    {"__posix_memalign", "0AS", 'o', O_POSIX_MEMALIGN}, {"__libc_malloc", "S", 'p', O_MALLOC}, {"__libc_calloc", "NS", 'p', O_CALLOC},
    {"__libc_realloc", "BS", 'p', O_REALLOC}, {"__libc_memalign", "AS", 'p', O_MEMALIGN}, {"__libc_valloc", "S", 'p', O_VALLOC},
    {"__libc_pvalloc", "S", 'p', O_PVALLOC}, {"_Znwm", "S", 'p', O_NEW}, {"_Znam", "S", 'p', O_NEW_ARRAY},
    {"_ZnwmRKSt9nothrow_t", "SX", 'p', O_NEW}, {"_ZnamRKSt9nothrow_t", "SX", 'p', O_NEW_ARRAY}, {"_ZnwmSt11align_val_t", "SA", 'p', O_NEW},
    {"_ZnamSt11align_val_t", "SA", 'p', O_NEW_ARRAY}, {"_ZnwmSt11align_val_tRKSt9nothrow_t", "SAX", 'p', O_NEW},
    {"_ZnamSt11align_val_tRKSt9nothrow_t", "SAX", 'p', O_NEW_ARRAY},
    {"mallocx", "SF", 'p', O_MALLOCX}, {"rallocx", "BSF", 'p', O_RALLOCX},
    {"mi_malloc", "S", 'p', O_MALLOC}, {"mi_malloc_small", "S", 'p', O_MALLOC}, {"mi_zalloc", "S", 'p', O_CALLOC},
    {"mi_zalloc_small", "S", 'p', O_CALLOC}, {"mi_calloc", "NS", 'p', O_CALLOC}, {"mi_mallocn", "NS", 'p', O_MALLOC},
    {"mi_realloc", "BS", 'p', O_REALLOC}, {"mi_rezalloc", "BS", 'p', O_REALLOC}, {"mi_reallocf", "BS", 'p', O_REALLOC},
    {"mi_reallocn", "BNS", 'p', O_REALLOCARRAY}, {"mi_recalloc", "BNS", 'p', O_REALLOCARRAY}, {"mi_reallocarray", "BNS", 'p', O_REALLOCARRAY},
    {"mi_reallocarr", "0NS", 'r', O_REALLOCARRAY}, {"mi_malloc_aligned", "SA", 'p', O_ALIGNED_ALLOC},
    {"mi_malloc_aligned_at", "SAO", 'p', O_ALIGNED_ALLOC}, {"mi_zalloc_aligned", "SA", 'p', O_ALIGNED_ALLOC},
    {"mi_zalloc_aligned_at", "SAO", 'p', O_ALIGNED_ALLOC}, {"mi_calloc_aligned", "NSA", 'p', O_CALLOC},
    {"mi_calloc_aligned_at", "NSAO", 'p', O_CALLOC}, {"mi_realloc_aligned", "BSA", 'p', O_REALLOC},
    {"mi_realloc_aligned_at", "BSAO", 'p', O_REALLOC}, {"mi_rezalloc_aligned", "BSA", 'p', O_REALLOC},
    {"mi_rezalloc_aligned_at", "BSAO", 'p', O_REALLOC}, {"mi_recalloc_aligned", "BNSA", 'p', O_REALLOCARRAY},
    {"mi_recalloc_aligned_at", "BNSAO", 'p', O_REALLOCARRAY}, {"mi_aligned_recalloc", "BNSA", 'p', O_REALLOCARRAY},
    {"mi_aligned_offset_recalloc", "BNSAO", 'p', O_REALLOCARRAY}, {"mi_posix_memalign", "0AS", 'o', O_POSIX_MEMALIGN},
    {"mi_memalign", "AS", 'p', O_MEMALIGN}, {"mi_aligned_alloc", "AS", 'p', O_ALIGNED_ALLOC}, {"mi_valloc", "S", 'p', O_VALLOC},
    {"mi_pvalloc", "S", 'p', O_PVALLOC}, {"mi_strdup", "T", 'p', O_MALLOC}, {"mi_strndup", "TL", 'p', O_MALLOC},
    {"mi_mbsdup", "T", 'p', O_MALLOC}, {"mi_realpath", "P0", 'p', O_MALLOC}, {"mi_new", "S", 'p', O_NEW}, {"mi_new_nothrow", "S", 'p', O_NEW},
    {"mi_new_aligned", "SA", 'p', O_NEW}, {"mi_new_aligned_nothrow", "SA", 'p', O_NEW}, {"mi_new_n", "NS", 'p', O_NEW},
    {"mi_new_realloc", "BS", 'p', O_REALLOC}, {"mi_new_reallocn", "BNS", 'p', O_REALLOCARRAY},
    {"mi_heap_malloc", "HS", 'p', O_MALLOC}, {"mi_heap_malloc_small", "HS", 'p', O_MALLOC}, {"mi_heap_zalloc", "HS", 'p', O_CALLOC},
    {"mi_heap_calloc", "HNS", 'p', O_CALLOC}, {"mi_heap_mallocn", "HNS", 'p', O_MALLOC}, {"mi_heap_realloc", "HBS", 'p', O_REALLOC},
    {"mi_heap_reallocf", "HBS", 'p', O_REALLOC}, {"mi_heap_rezalloc", "HBS", 'p', O_REALLOC},
    {"mi_heap_reallocn", "HBNS", 'p', O_REALLOCARRAY}, {"mi_heap_recalloc", "HBNS", 'p', O_REALLOCARRAY},
    {"mi_heap_malloc_aligned", "HSA", 'p', O_ALIGNED_ALLOC}, {"mi_heap_malloc_aligned_at", "HSAO", 'p', O_ALIGNED_ALLOC},
    {"mi_heap_zalloc_aligned", "HSA", 'p', O_ALIGNED_ALLOC}, {"mi_heap_zalloc_aligned_at", "HSAO", 'p', O_ALIGNED_ALLOC},
    {"mi_heap_calloc_aligned", "HNSA", 'p', O_CALLOC}, {"mi_heap_calloc_aligned_at", "HNSAO", 'p', O_CALLOC},
    {"mi_heap_realloc_aligned", "HBSA", 'p', O_REALLOC}, {"mi_heap_realloc_aligned_at", "HBSAO", 'p', O_REALLOC},
    {"mi_heap_rezalloc_aligned", "HBSA", 'p', O_REALLOC}, {"mi_heap_rezalloc_aligned_at", "HBSAO", 'p', O_REALLOC},
    {"mi_heap_recalloc_aligned", "HBNSA", 'p', O_REALLOCARRAY}, {"mi_heap_recalloc_aligned_at", "HBNSAO", 'p', O_REALLOCARRAY},
    {"mi_heap_strdup", "HT", 'p', O_MALLOC}, {"mi_heap_strndup", "HTL", 'p', O_MALLOC}, {"mi_heap_realpath", "HP0", 'p', O_MALLOC},
    {"mi_heap_alloc_new", "HS", 'p', O_NEW}, {"mi_heap_alloc_new_n", "HNS", 'p', O_NEW},
    {"tc_malloc", "S", 'p', O_MALLOC}, {"tc_malloc_skip_new_handler", "S", 'p', O_MALLOC}, {"tc_calloc", "NS", 'p', O_CALLOC},
    {"tc_realloc", "BS", 'p', O_REALLOC}, {"tc_memalign", "AS", 'p', O_MEMALIGN}, {"tc_posix_memalign", "0AS", 'o', O_POSIX_MEMALIGN},
    {"tc_valloc", "S", 'p', O_VALLOC}, {"tc_pvalloc", "S", 'p', O_PVALLOC}, {"tc_new", "S", 'p', O_NEW}, {"tc_newarray", "S", 'p', O_NEW_ARRAY},
    {"tc_new_nothrow", "SX", 'p', O_NEW}, {"tc_newarray_nothrow", "SX", 'p', O_NEW_ARRAY}, {"tc_new_aligned", "SA", 'p', O_NEW},
    {"tc_newarray_aligned", "SA", 'p', O_NEW_ARRAY}, {"tc_new_aligned_nothrow", "SAX", 'p', O_NEW},
    {"tc_newarray_aligned_nothrow", "SAX", 'p', O_NEW_ARRAY},
};
// With the block, its size and its alignment: what a function does not take it does not look at.
static const char *const FREES[] = {
    "free", "cfree", "vfree", "__libc_free", "__libc_cfree", "mi_free", "mi_cfree", "mi_free_size", "tc_free", "tc_cfree", "tc_free_sized",
    "sdallocx0", "dallocx0", "_ZdlPv", "_ZdaPv", "_ZdlPvm", "_ZdaPvm", "_ZdlPvRKSt9nothrow_t", "_ZdaPvRKSt9nothrow_t", "tc_delete",
    "tc_delete_sized", "tc_delete_nothrow", "tc_deletearray", "tc_deletearray_sized", "tc_deletearray_nothrow",
};
static const char *const ALIGNED_FREES[] = {
    "mi_free_aligned", "mi_free_size_aligned", "_ZdlPvSt11align_val_t", "_ZdaPvSt11align_val_t", "_ZdlPvmSt11align_val_t", "_ZdaPvmSt11align_val_t",
    "_ZdlPvSt11align_val_tRKSt9nothrow_t", "_ZdaPvSt11align_val_tRKSt9nothrow_t", "tc_delete_aligned", "tc_delete_sized_aligned",
    "tc_delete_aligned_nothrow", "tc_deletearray_aligned", "tc_deletearray_sized_aligned", "tc_deletearray_aligned_nothrow",
};

// A function of the library whose malloc is in use: others keep to a heap of their own.
static any find(const char *name) {
  Dl_info here, there;
  void *function = dlsym(RTLD_DEFAULT, name);
  if (!function || !dladdr(function, &here) || !dladdr(dlsym(RTLD_DEFAULT, "malloc"), &there)) return NULL;
  return here.dli_fbase == there.dli_fbase ? (any)function : NULL;
}

OWN static void note_free(void *block) {
  free(block);
  o_note(O_FREE, block, 0, NULL);
}

// One call; what it made is freed at once.
OWN static void one(const struct call *call, uint64_t number) {
  any function = find(call->name);
  if (!function) return;
  static char text[64] = "a text of some length to be copied", path[] = "/proc/../proc/self/../..";
  static uint64_t nothing;
  // Small ones, page-sized ones and one that is a mapping of its own; "small" functions take no more than a KiB.
  static const uint64_t SIZES[] = {40, 1000, 5000, 600000};
  uint64_t size = SIZES[strstr(call->name, "small") ? number % 2 : number % 4], count = 3, total = size, args[6] = {0};
  void *old = NULL, *block = NULL;
  if (strchr(call->arguments, 'B') || call->back == 'r') {
    old = malloc(24);
    o_note(O_MALLOC, old, 24, NULL);
  }
  for (int i = 0; call->arguments[i]; i++) switch (call->arguments[i]) {
    case 'S': args[i] = size; break;
    case 'N': args[i] = count; total = size * count; break;
    case 'A': args[i] = 64; break;
    case 'O': args[i] = 8; break;
    case 'H': args[i] = (uint64_t)heap; break;
    case 'B': args[i] = (uint64_t)old; break;
    case 'T': args[i] = (uint64_t)text; total = strlen(text) + 1; break;
    case 'L': args[i] = 10; total = 11; break;
    case 'P': args[i] = (uint64_t)path; total = 2; break; // the root
    case 'X': args[i] = (uint64_t)&nothing; break;
    default: break;
    }
  if (call->back != 'p') args[0] = (uint64_t)&block;
  if (call->back == 'r') block = old;
  uint64_t back = function(args[0], args[1], args[2], args[3], args[4], args[5]);
  if (call->back == 'p') block = (void *)back;
  else O_CHECK(back == 0);
  if (!block) o_fail(call->name, 0);
  o_note_at(call->op, (uintptr_t)block, total, (uintptr_t)old);
  memset(block, 1, total);
  note_free(block);
  called++;
}

OWN static void release(const char *name, int aligned) {
  char plain[64];
  snprintf(plain, sizeof plain, "%s", name);
  int flagged = plain[strlen(plain) - 1] == '0'; // jemalloc's: flags 0 in the last place
  if (flagged) plain[strlen(plain) - 1] = 0;
  any function = find(plain);
  if (!function) return;
  size_t size = aligned ? 256 : 100;
  void *block = aligned ? aligned_alloc(64, size) : malloc(size);
  o_note(aligned ? O_ALIGNED_ALLOC : O_MALLOC, block, size, NULL);
  static uint64_t nothing;
  int nothrow = !!strstr(plain, "nothrow"), sized = strstr(plain, "size") || strstr(plain, "Pvm");
  if (flagged) function((uint64_t)block, plain[0] == 's' ? size : 0, 0, 0, 0, 0);
  else if (sized) function((uint64_t)block, size, 64, (uint64_t)&nothing, 0, 0);
  else if (aligned) function((uint64_t)block, 64, (uint64_t)&nothing, 0, 0, 0);
  else function((uint64_t)block, nothrow ? (uint64_t)&nothing : 0, 0, 0, 0, 0);
  o_note(O_FREE, block, 0, NULL);
  called++;
}

OWN static void call_all(void) {
  for (unsigned i = 0; i < sizeof CALLS / sizeof *CALLS; i++) {
    for (uint64_t size = 0; size < 4; size++) one(&CALLS[i], size);
  }
  for (unsigned i = 0; i < sizeof FREES / sizeof *FREES; i++) release(FREES[i], 0);
  for (unsigned i = 0; i < sizeof ALIGNED_FREES / sizeof *ALIGNED_FREES; i++) release(ALIGNED_FREES[i], 1);
  // In place: jemalloc's tells the size, mimalloc's the block.
  any xallocx = find("xallocx"), expand = find("mi_expand");
  for (int k = 0; k < 2; k++) {
    any function = k ? expand : xallocx;
    if (!function) continue;
    void *block = malloc(1000);
    o_note(O_MALLOC, block, 1000, NULL);
    uint64_t back = function((uint64_t)block, 900, 0, 0, 0, 0);
    O_CHECK(k ? back == 0 || back == (uint64_t)block : back >= 900);
    if (back) o_note(O_XALLOCX, block, 900, (uintptr_t)block);
    note_free(block);
    called++;
  }
}

int main(void) {
  char line[64];
  void *(*heap_of)(void) = (void *(*)(void))dlsym(RTLD_DEFAULT, "mi_heap_get_default");
  if (heap_of) heap = heap_of();
  note_free(malloc(1)); // tables of dlsym's and the like are made
  O_CHECK(write(1, "ready\n", 6) == 6);
  size_t n = 0;
  while (read(0, line + n, 1) == 1) {
    if (line[n] != '\n') {
      n = (n + 1) % sizeof line;
      continue;
    }
    line[n] = 0, n = 0;
    if (!strcmp(line, "end")) return o_end(0);
    O_CHECK(!strcmp(line, "call"));
    uint64_t first = o_head->used_recs;
    called = 0;
    call_all();
    o_fact(2 + 2 * (int)phases, first);
    o_fact(3 + 2 * (int)phases, o_head->used_recs);
    o_fact(0, ++phases);
    o_fact(40, called);
    O_CHECK(write(1, "done call\n", 10) == 10);
  }
  return 3;
}
