// Two pools of its own. The arena cuts its blocks from chunks taken with malloc, the first of them at the chunk's own address; the slots are
// cut from a block of the arena, the first at that block's address. Each function counts what it does, for the heap and for each pool.
//
// Orders are lines on standard input; the answer to "count" is a line `NAME allocations bytes frees unknown live_blocks live_bytes peak`
// for each of heap, arena and slots. It uses no stdio, which would allocate.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK (64 << 10)
#define LARGEST (16 << 10)
#define SLOT 64
#define BLOCKS 8192

struct count {
    const char *name;
    uint64_t allocations, bytes, frees, unknown, live_blocks, live_bytes, peak;
};
static struct count heap = {.name = "heap"}, arena_count = {.name = "arena"}, slot_count = {.name = "slots"};
static int counting;

static void came(struct count *of, uint64_t size) {
    if (!counting) return;
    of->allocations++;
    of->bytes += size;
    of->live_blocks++;
    of->live_bytes += size;
    if (of->live_bytes > of->peak) of->peak = of->live_bytes;
}

static void went(struct count *of, uint64_t size, int known) {
    if (!counting) return;
    if (!known) {
        of->unknown++;
        return;
    }
    of->frees++;
    of->live_blocks--;
    of->live_bytes -= size;
}

// Where the arena's and the slots' blocks are: no header lies before them, so that one can lie where its chunk does.
struct block {
    char *at;
    uint64_t size;
    int known;
};
static struct block blocks[BLOCKS], slots[BLOCKS];

static struct block *block_at(struct block *in, const char *at) {
    for (int i = 0; i < BLOCKS; i++)
        if (in[i].at == at) return &in[i];
    _exit(50);
}

struct arena {
    char *chunk;
    size_t used;
    char *free_blocks[LARGEST / 16 + 1]; // by rounded size, linked through their first word
    int chunks;
};

static size_t rounded(size_t size) { return size < 16 ? 16 : (size + 15) & ~(size_t)15; }

static char *cut(struct arena *a, size_t size) {
    size_t room = rounded(size);
    char **list = &a->free_blocks[room / 16], *at = *list;
    if (at) {
        memcpy(list, at, sizeof *list);
    } else {
        if (!a->chunk || a->used + room > CHUNK) {
            a->chunk = malloc(CHUNK);
            if (!a->chunk) _exit(51);
            came(&heap, CHUNK);
            a->used = 0;
            a->chunks++;
        }
        at = a->chunk + a->used;
        a->used += room;
    }
    struct block *b = block_at(blocks, NULL);
    *b = (struct block){at, size, counting};
    came(&arena_count, size);
    memset(at, 0x5a, size);
    return at;
}

static int moving;
static void put_back(struct arena *a, char *at) {
    struct block *b = block_at(blocks, at);
    char **list = &a->free_blocks[rounded(b->size) / 16];
    if (!moving) went(&arena_count, b->size, b->known);
    *b = (struct block){0};
    memcpy(at, list, sizeof *list);
    *list = at;
}

__attribute__((noinline)) void *arena_get(struct arena *a, size_t size) { return size > LARGEST ? NULL : cut(a, size); }

__attribute__((noinline)) void arena_put(struct arena *a, void *block) {
    if (block) put_back(a, block);
}

__attribute__((noinline)) void *arena_zeroed(struct arena *a, size_t count, size_t size) {
    size_t all;
    if (__builtin_mul_overflow(count, size, &all) || all > LARGEST) return NULL;
    char *at = cut(a, all);
    memset(at, 0, all);
    return at;
}

// Where the block fits it stays; elsewhere it moves, by way of the other functions, which are hooked too.
void *(*volatile getter)(struct arena *, size_t) = arena_get;
void (*volatile putter)(struct arena *, void *) = arena_put;
__attribute__((noinline)) void *arena_grow(struct arena *a, void *block, size_t size) {
    if (size > LARGEST) return NULL; // and the block stays
    if (!block) return getter(a, size);
    struct block *b = block_at(blocks, block);
    if (rounded(size) == rounded(b->size)) {
        went(&arena_count, b->size, b->known);
        came(&arena_count, size);
        b->size = size;
        b->known = counting;
        return block;
    }
    went(&arena_count, b->size, b->known); // a realloc releases before it allocates
    void *moved = getter(a, size);
    memcpy(moved, block, size < b->size ? size : b->size);
    moving = 1;
    putter(a, block);
    moving = 0;
    return moved;
}

static char *slab;
static int slots_used;
__attribute__((noinline)) void *slot_get(size_t size) {
    if (!slab || size > SLOT || (slots_used + 1) * SLOT > LARGEST) return NULL;
    char *at = slab + slots_used++ * SLOT;
    *block_at(slots, NULL) = (struct block){at, size, counting};
    came(&slot_count, size);
    return at;
}

__attribute__((noinline)) void slot_put(void *at) {
    struct block *b = block_at(slots, at);
    went(&slot_count, b->size, b->known);
    *b = (struct block){0};
}

static struct arena a;
static char *early[40];

__attribute__((noinline)) static void before(void) {
    for (int i = 0; i < 40; i++) early[i] = arena_get(&a, 100);
    a.chunk = NULL; // what is counted begins with a chunk of its own
}

__attribute__((noinline)) static void work(void) {
    char *kept[600];
    kept[0] = arena_get(&a, 24);
    if (kept[0] != a.chunk) _exit(52); // a pool's block at the address of the heap's
    for (int i = 1; i < 600; i++) kept[i] = arena_get(&a, 24 + (size_t)i % 200);
    for (int i = 0; i < 600; i += 3) kept[i] = arena_grow(&a, kept[i], 24 + (size_t)i % 200 + 1);
    for (int i = 1; i < 600; i += 3) kept[i] = arena_grow(&a, kept[i], 1000 + (size_t)i);
    if (arena_grow(&a, kept[1], LARGEST + 1) || arena_get(&a, LARGEST + 1) || arena_zeroed(&a, SIZE_MAX / 2, 3)) _exit(53);
    for (int i = 0; i < 100; i++) {
        char *zeroed = arena_zeroed(&a, 7, (size_t)i);
        for (int j = 0; j < 7 * i; j++)
            if (zeroed[j]) _exit(54);
        if (i % 2) arena_put(&a, zeroed);
    }
    for (int i = 0; i < 500; i++) arena_put(&a, kept[i]);
    arena_put(&a, NULL);
    arena_put(&a, arena_grow(&a, NULL, 333));
    for (int i = 0; i < 10; i++) arena_put(&a, early[i]);
    slab = arena_get(&a, LARGEST);
    void *got[100];
    for (int i = 0; i < 100; i++) got[i] = slot_get(10 + (size_t)i % 50);
    if (got[0] != slab || slot_get(SLOT + 1)) _exit(55);
    for (int i = 0; i < 30; i++) slot_put(got[i]);
    // And the heap itself, through blocks that have nothing to do with the pools.
    for (int i = 0; i < 50; i++) {
        size_t size = 500 + (size_t)i;
        void *volatile own = malloc(size);
        came(&heap, size);
        if (i % 5) {
            free(own);
            went(&heap, size, 1);
        }
    }
}

static void say(const char *text) {
    if (write(1, text, strlen(text)) < 0) _exit(56);
}

static void tell(const struct count *of) {
    char line[400];
    snprintf(line, sizeof line, "%s %lu %lu %lu %lu %lu %lu %lu\n", of->name, of->allocations, of->bytes, of->frees, of->unknown, of->live_blocks,
             of->live_bytes, of->peak);
    say(line);
}

int main(void) {
    before();
    say("ready\n");
    for (;;) {
        char line[64];
        size_t n = 0;
        while (n + 1 < sizeof line && read(0, line + n, 1) == 1 && line[n] != '\n') n++;
        line[n] = 0;
        if (!strcmp(line, "work")) {
            counting = 1;
            work();
            counting = 0;
        } else if (!strcmp(line, "count")) {
            tell(&heap), tell(&arena_count), tell(&slot_count);
        } else {
            return strcmp(line, "end") != 0;
        }
        say("done "), say(line), say("\n");
    }
}
