// The oracle for programs that are not C: plain functions over oracle.h. The caller stands one frame further away, so no stacks.
#define O_CAP (1u << 20)
#define O_WORDS 1024
#define O_NO_STACKS
#define O_NO_HASH
#include "oracle.h"

void oracle_note(uint32_t op, const void *addr, uint64_t size, const void *prev) { o_note((enum o_op)op, addr, size, prev); }
void oracle_fact(int32_t i, uint64_t value) { o_fact(i, value); }
int32_t oracle_end(int32_t status) { return o_end(status); }
