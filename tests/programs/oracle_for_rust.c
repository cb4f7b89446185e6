// The oracle for programs that are not C: the allocator's functions, noted. They have a section of their own, and only what is
// called from there is the program's own: Rust's standard library keeps some blocks past the global allocator.
#define O_CAP (1u << 20)
#define O_NO_HASH
extern char __start_oracle_text[], __stop_oracle_text[];
#define O_OWN_START __start_oracle_text
#define O_OWN_END __stop_oracle_text
#include "oracle.h"

#define OWN __attribute__((section("oracle_text"), noinline))
OWN void *oracle_malloc(size_t n) { return o_malloc(n); }
OWN void *oracle_calloc(size_t a, size_t b) { return o_calloc(a, b); }
OWN void *oracle_realloc(void *p, size_t n) { return o_realloc(p, n); }
OWN void *oracle_aligned_alloc(size_t a, size_t n) { return o_aligned_alloc(a, n); }
OWN void oracle_free(void *p) { o_free(p); }
void oracle_fact(int32_t i, uint64_t value) { o_fact(i, value); }
int32_t oracle_end(int32_t status) { return o_end(status); }
