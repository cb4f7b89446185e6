// Plays hound inside its own process: maps the image of libhound.so by hand, fills in the attachment, and calls the stubs through thunks as
// patched functions would. Then reads the ring and compares with what it has done. Prints "PASS what" for each part; ends with 1 at the
// first difference. Usage: mapped LIBHOUND loader|known|listed
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define CHECK(what, ...) \
    do { \
        if (!(what)) { \
            printf("FAIL line %d: %s: ", __LINE__, #what); \
            printf("" __VA_ARGS__); \
            printf("\n"); \
            exit(1); \
        } \
    } while (0)

enum { STREAMS = 4096, SEGMENTS = 5120, SEGMENT_BYTES = 32768, STREAM_BYTES = 128, SEGMENT_HEAD = 64, THREAD_SLOTS = 8192, SAMPLES_BYTES = 65536 + 262144 * 8 };
enum { OPTION_FREE_STACKS = 1, OPTION_SHADOW_STACK = 2, OPTION_MAPS = 4 };
enum { TAG_STACK = 2, TAG_ALLOC = 3, TAG_FREE = 4, TAG_MAP = 5, TAG_UNMAP = 6, TAG_REMAP = 7, TAG_MODULE = 11, TAG_PROCESS = 14 };
#define STREAMS_OFFSET 4096ul
#define SEGMENTS_OFFSET (STREAMS_OFFSET + (unsigned long)STREAMS * STREAM_BYTES)
#define DATA_OFFSET ((SEGMENTS_OFFSET + (unsigned long)SEGMENTS * SEGMENT_HEAD + 4095) / 4096 * 4096)
#define RING_BYTES (DATA_OFFSET + (unsigned long)SEGMENTS * SEGMENT_BYTES)

struct control {
    _Atomic uint64_t magic;
    _Atomic uint32_t version, options;
    _Atomic uint64_t state;
    _Atomic uint32_t clock, target_pid, library, bow_out, line[6];
    _Atomic uint32_t heartbeat, in_use, limit, freed, waiters, max_wait_ms, streams_high, segments_high;
    _Atomic uint64_t lost[16], waited, start_ticks, library_start, library_end, attachment, ring_in_target;
    _Atomic uint32_t patience_ms, drainer;
    _Atomic uint64_t interval, part;
};
struct stream {
    _Atomic uint32_t state, tid, level, generation;
    uint64_t rest[14];
};
struct segment {
    _Atomic uint32_t state, stream, sequence, committed, generation;
    uint32_t rest[11];
};
struct attachment {
    _Atomic uint64_t magic;
    _Atomic uint32_t version, mapped;
    _Atomic uint64_t ring, states, fork_mark, threads, image_start, image_end, entries, entry_count, dl_find_object, r_debug, modules;
    _Atomic uint64_t module_count, loader_start, loader_end, tid_offset, executable_headers, executable_header_count, executable_bias;
    _Atomic uint64_t session, clock_gettime, image, own_pieces, own_piece_count, samples, family, reserved;
};
struct entry {
    uint64_t real, helper, inside_start, inside_end, address, thunk, attachment, stub;
    uint8_t kind, shape, flags, size_argument, count_argument, block_argument, pool, length, original[24], patched[24];
};
struct known {
    uint64_t start, end, bias, eh_frame_hdr, headers, header_count, made_header;
};
enum shape {
    ALLOC, CALLOC, REALLOC, REALLOCARRAY, POSIX_MEMALIGN, MEMALIGN, ALLOC_FIRST, RALLOCX, XALLOCX, FREE, NEW, MMAP, MUNMAP, MREMAP, EXEC,
    POOL_ALLOC, POOL_FREE, POOL_REALLOC, REGISTER_FRAME, DEREGISTER_FRAME, WIDE, WIDE_REALLOC, TEXT, REALLOCARR, FORK, PRCTL, SYSCALL,
    SHAPES
};
enum kind {
    K_MALLOC = 1, K_CALLOC = 2, K_REALLOC = 3, K_REALLOCARRAY = 4, K_POSIX_MEMALIGN = 5, K_MEMALIGN = 6, K_NEW = 10, K_MALLOCX = 12,
    K_RALLOCX = 13, K_XALLOCX = 14, K_POOL_ALLOC = 15, K_POOL_REALLOC = 16, K_FREE = 32, K_DELETE = 36, K_POOL_FREE = 40, K_MMAP = 64,
    K_MUNMAP = 65, K_MREMAP = 66
};

static struct control *control;
static struct stream *streams;
static struct segment *segments;
static struct attachment *attachment;
static uint64_t *stubs;
static struct entry entries[128];
static int entry_count;
static uint8_t *thunks;

static void *reserve(size_t bytes, int prot) {
    void *memory = mmap(NULL, bytes, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

static void *wiped_on_fork(size_t bytes) {
    void *memory = reserve(bytes, PROT_READ | PROT_WRITE);
    CHECK(madvise(memory, bytes, MADV_WIPEONFORK) == 0);
    return memory;
}

// ---- the image ----

static void load_image(const char *path) {
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0, "%s", path);
    size_t length = lseek(fd, 0, SEEK_END);
    uint8_t *file = mmap(NULL, length, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(file != MAP_FAILED);
    Elf64_Ehdr *header = (void *)file;
    Elf64_Phdr *programs = (void *)(file + header->e_phoff);
    size_t end = 0;
    for (int i = 0; i < header->e_phnum; i++)
        if (programs[i].p_type == PT_LOAD) end = programs[i].p_vaddr + programs[i].p_memsz;
    end = (end + 4095) / 4096 * 4096;
    uint8_t *image = reserve(end, PROT_READ | PROT_WRITE);
    for (int i = 0; i < header->e_phnum; i++)
        if (programs[i].p_type == PT_LOAD) memcpy(image + programs[i].p_vaddr, file + programs[i].p_offset, programs[i].p_filesz);
    Elf64_Shdr *sections = (void *)(file + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type == SHT_RELA) {
            Elf64_Rela *rela = (void *)(file + sections[i].sh_offset);
            for (size_t r = 0; r < sections[i].sh_size / sizeof *rela; r++) {
                uint64_t *place = (void *)(image + rela[r].r_offset);
                uint32_t type = ELF64_R_TYPE(rela[r].r_info);
                CHECK(type == R_X86_64_RELATIVE || type == R_X86_64_GLOB_DAT || type == R_X86_64_TPOFF64, "relocation %u", type);
                *place = type == R_X86_64_RELATIVE ? (uint64_t)image + rela[r].r_addend : 0;
            }
        } else if (sections[i].sh_type == SHT_DYNSYM) {
            Elf64_Sym *symbols = (void *)(file + sections[i].sh_offset);
            const char *names = (void *)(file + sections[sections[i].sh_link].sh_offset);
            for (size_t s = 0; s < sections[i].sh_size / sizeof *symbols; s++) {
                if (!strcmp(names + symbols[s].st_name, "hound_attachment")) attachment = (void *)(image + symbols[s].st_value);
                if (!strcmp(names + symbols[s].st_name, "hound_stubs")) stubs = (void *)(image + symbols[s].st_value);
            }
        }
    }
    CHECK(attachment && stubs && memcmp(attachment, "HOUNDATT", 8) == 0 && attachment->version == 5);
    for (int i = 0; i < header->e_phnum; i++) {
        if (programs[i].p_type != PT_LOAD) continue;
        uint64_t from = programs[i].p_vaddr / 4096 * 4096;
        int prot = (programs[i].p_flags & PF_R ? PROT_READ : 0) | (programs[i].p_flags & PF_W ? PROT_WRITE : 0) |
                   (programs[i].p_flags & PF_X ? PROT_EXEC : 0);
        CHECK(mprotect(image + from, programs[i].p_vaddr + programs[i].p_memsz - from, prot) == 0);
    }
    attachment->image_start = (uint64_t)image;
    attachment->image_end = (uint64_t)image + end;
    close(fd);
}

static void make_ring(void) {
    int fd = memfd_create("hound-ring", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, RING_BYTES) == 0);
    uint8_t *ring = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(ring != MAP_FAILED);
    close(fd);
    control = (void *)ring;
    streams = (void *)(ring + STREAMS_OFFSET);
    segments = (void *)(ring + SEGMENTS_OFFSET);
    control->version = 2;
    control->options = OPTION_FREE_STACKS | OPTION_SHADOW_STACK | OPTION_MAPS;
    control->state = 4;
    control->clock = 1;
    control->target_pid = getpid();
    control->limit = 192;
    control->max_wait_ms = 10000;
    memcpy((void *)control, "HOUNDRNG", 8);
}

static void change(int recording) {
    control->part += recording && !(control->state & 1);
    control->state = ((control->state & ~3ul) + 4) | recording;
}

static struct known known[64];
static int known_count;

static int add_known(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size, (void)data;
    struct known *k = &known[known_count++];
    *k = (struct known){.start = -1ul, .bias = info->dlpi_addr, .headers = (uint64_t)info->dlpi_phdr, .header_count = info->dlpi_phnum};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        uint64_t at = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        if (info->dlpi_phdr[i].p_type == PT_GNU_EH_FRAME) k->eh_frame_hdr = at;
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        if (at / 4096 * 4096 < k->start) k->start = at / 4096 * 4096;
        if (at + info->dlpi_phdr[i].p_memsz > k->end) k->end = at + info->dlpi_phdr[i].p_memsz;
    }
    // As if libc had been loaded later: only the loader's list knows it.
    if (data && strstr(info->dlpi_name, "libc.so")) known_count--;
    return 0;
}

static int add_executable(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size, (void)data;
    attachment->executable_headers = (uint64_t)info->dlpi_phdr;
    attachment->executable_header_count = info->dlpi_phnum;
    attachment->executable_bias = info->dlpi_addr;
    return 1;
}

static void attach(const char *path, const char *mode) {
    load_image(path);
    make_ring();
    attachment->ring = (uint64_t)control;
    attachment->states = (uint64_t)wiped_on_fork(STREAMS * 4096ul);
    uint64_t *mark = wiped_on_fork(4096);
    *mark = 1;
    attachment->fork_mark = (uint64_t)mark;
    attachment->threads = (uint64_t)wiped_on_fork(THREAD_SLOTS * 16);
    attachment->samples = (uint64_t)wiped_on_fork(SAMPLES_BYTES);
    attachment->entries = (uint64_t)entries;
    attachment->tid_offset = 720;
    if (!strcmp(mode, "loader")) {
        attachment->dl_find_object = (uint64_t)dlsym(RTLD_DEFAULT, "_dl_find_object");
        CHECK(attachment->dl_find_object);
        dl_iterate_phdr(add_executable, NULL);
    } else {
        dl_iterate_phdr(add_known, strcmp(mode, "listed") ? NULL : mark);
        attachment->modules = (uint64_t)known;
        attachment->module_count = known_count;
        for (ElfW(Dyn) *d = _DYNAMIC; d->d_tag; d++)
            if (d->d_tag == DT_DEBUG) attachment->r_debug = d->d_un.d_ptr;
        CHECK(attachment->r_debug);
    }
    attachment->mapped = 1;
    attachment->session = 1;
    control->attachment = (uint64_t)attachment;
    control->patience_ms = 250;
    thunks = reserve(65536, PROT_READ | PROT_WRITE | PROT_EXEC);
}

static void *patch(enum shape shape, enum kind kind, void *real) {
    struct entry *e = &entries[entry_count];
    uint8_t *thunk = thunks + entry_count++ * 32;
    *e = (struct entry){.real = (uint64_t)real, .kind = kind, .shape = shape, .thunk = (uint64_t)thunk, .size_argument = 255,
                        .count_argument = 255, .block_argument = 255};
    uint8_t *at = thunk;
    if (shape == POOL_ALLOC || shape == POOL_FREE || shape == POOL_REALLOC) {
        memcpy(at, (uint8_t[]){0x41, 0x53}, 2); // push r11
        at += 2;
    }
    memcpy(at, (uint8_t[]){0x49, 0xbb}, 2); // mov r11, imm64
    memcpy(at + 2, &e, 8);
    memcpy(at + 10, (uint8_t[]){0xff, 0x25, 0, 0, 0, 0}, 6); // jmp [rip]
    memcpy(at + 16, &stubs[shape], 8);
    return thunk;
}

static struct entry *entry_of(void *thunk) { return &entries[((uint8_t *)thunk - thunks) / 32]; }

// ---- the ring ----

struct event {
    uint8_t tag, kind, flags;
    uint16_t slack;
    uint32_t tid, stream;
    uint64_t words[6];
    uint64_t leaf, root;
    int depth;
};
static struct event *events;
static size_t event_count, event_room;
static size_t read_of[SEGMENTS];
static uint32_t next_of[STREAMS], generation_of[STREAMS];
static uint64_t (*stack_of)[512];
static int depth_of[STREAMS], ignored[STREAMS];
static int modules_met;

static void record(uint32_t stream, const uint64_t *w, int words) {
    uint8_t tag = w[0], a = w[0] >> 16, b = w[0] >> 24;
    if (tag == TAG_MODULE) {
        modules_met++;
        return;
    }
    uint64_t *stack = stack_of[stream];
    if (tag == TAG_STACK) {
        uint64_t old[512];
        memcpy(old, stack, sizeof old);
        unsigned keep = w[1] & 0xffff, new = w[1] >> 16 & 0xffff, from = w[1] >> 32 & 0xffff, leaf = w[1] >> 48;
        CHECK(keep + new + leaf < 512 && words == (int)(2 + new));
        CHECK(keep <= (unsigned)depth_of[stream] || depth_of[stream] > 0, "an edit of a stack that was never written");
        for (unsigned i = 0; i < new; i++) stack[keep + i] = w[2 + i];
        for (unsigned i = 0; i < leaf; i++) stack[keep + new + i] = old[from + i];
        depth_of[stream] = keep + new + leaf;
        return;
    }
    if (tag != TAG_ALLOC && tag != TAG_FREE && tag != TAG_PROCESS && (tag < TAG_MAP || tag > TAG_REMAP)) return;
    if (event_count == event_room) {
        event_room = event_room ? event_room * 2 : 4096;
        events = realloc(events, event_room * sizeof *events);
    }
    struct event *e = &events[event_count++];
    *e = (struct event){.tag = tag, .kind = a, .flags = b, .tid = streams[stream].tid, .stream = stream, .depth = depth_of[stream]};
    for (int i = 1; i < words && i < 7; i++) e->words[i - 1] = w[i];
    if (tag == TAG_ALLOC) {
        e->slack = e->words[1] >> 48;
        e->words[1] &= 0xffffffffffff;
    }
    if (e->depth) {
        e->leaf = stack[e->depth - 1];
        e->root = stack[0];
    }
}

static int alive(uint32_t tid) { return syscall(SYS_tgkill, getpid(), tid, 0) == 0; }

// Reads everything; gives back the streams of threads that are gone.
static void drain(void) {
    control->heartbeat++;
    static uint8_t gone[STREAMS];
    for (uint32_t s = 0; s < control->streams_high; s++) gone[s] = streams[s].state == 1 && !alive(streams[s].tid);
    int progress = 1;
    while (progress) {
        progress = 0;
        for (uint32_t i = 0; i < control->segments_high; i++) {
            struct segment *segment = &segments[i];
            uint32_t state = segment->state, stream = segment->stream;
            if (state != 1 && state != 2) continue;
            if (ignored[stream] && streams[stream].generation == generation_of[stream]) continue;
            if (streams[stream].generation != generation_of[stream]) {
                generation_of[stream] = streams[stream].generation;
                next_of[stream] = 0;
                depth_of[stream] = 0;
                ignored[stream] = 0;
            }
            CHECK(segment->generation == generation_of[stream]);
            if (segment->sequence != next_of[stream]) continue;
            uint64_t *data = (uint64_t *)((uint8_t *)control + DATA_OFFSET + (size_t)i * SEGMENT_BYTES);
            size_t committed = segment->committed;
            while (read_of[i] < committed) {
                uint64_t *w = data + read_of[i] / 8;
                int words = w[0] >> 8 & 0xff;
                CHECK(words > 0 && read_of[i] + words * 8 <= committed, "a record over the end");
                record(stream, w, words);
                read_of[i] += words * 8;
                progress = 1;
            }
            if (state == 2 || gone[stream]) {
                next_of[stream]++;
                read_of[i] = 0;
                segment->state = 0;
                control->in_use--;
                progress = 1;
            }
        }
    }
    for (uint32_t s = 0; s < control->streams_high; s++) {
        if (gone[s] && !(ignored[s] && generation_of[s] == streams[s].generation)) streams[s].state = 0;
    }
}

static struct event *expect(size_t i, int tag, int kind, uint64_t first) {
    CHECK(i < event_count, "only %zu events", event_count);
    struct event *e = &events[i];
    CHECK(e->tag == tag && e->kind == kind && e->words[0] == first, "event %zu: tag %d kind %d first %#lx, expected %d %d %#lx", i, e->tag,
          e->kind, e->words[0], tag, kind, first);
    return e;
}

static void begin(void) {
    drain();
    event_count = 0;
}

static void end(size_t expected, const char *what) {
    drain();
    CHECK(event_count == expected, "%s: %zu events, expected %zu", what, event_count, expected);
    for (int i = 0; i < 16; i++) CHECK(control->lost[i] == 0, "lost[%d]", i);
    printf("PASS %s\n", what);
}

// ---- the allocator that is "patched" ----

static void *(*t_malloc)(size_t), *(*t_calloc)(size_t, size_t), *(*t_realloc)(void *, size_t), *(*t_reallocarray)(void *, size_t, size_t);
static int (*t_posix_memalign)(void **, size_t, size_t);
static void *(*t_memalign)(size_t, size_t), *(*t_mallocx)(size_t, size_t, size_t), *(*t_rallocx)(void *, size_t, size_t);
static size_t (*t_xallocx)(void *, size_t, size_t, int);
static void (*t_free)(void *), (*t_delete)(void *), (*t_delete_jump)(void *);

__attribute__((noinline)) static void *nested_calloc(size_t count, size_t size) {
    void *block = t_malloc(count * size);
    if (block) memset(block, 0, count * size);
    return block;
}
__attribute__((noinline)) static void *nested_reallocarray(void *old, size_t count, size_t size) { return t_realloc(old, count * size); }
__attribute__((noinline)) static void *nested_memalign(size_t align, size_t size) {
    void *block = t_malloc(size); // and more that the allocator does with its own functions
    t_free(block);
    return memalign(align, size);
}
__attribute__((noinline)) static void nested_delete(void *block) {
    t_free(block);
    __asm__ volatile("" ::: "memory"); // no tail call
}
void *jump_target;
__attribute__((naked)) static void jumping_delete(void) { __asm__("jmp *jump_target(%rip)"); }
static void *mallocx(size_t size, size_t align, size_t more) {
    CHECK(align == 64 && more == 7);
    return aligned_alloc(64, (size + 63) / 64 * 64);
}
static void *rallocx(void *old, size_t size, size_t flags) {
    CHECK(flags == 64);
    return realloc(old, size);
}
static size_t xallocx(void *block, size_t size, size_t extra, int flags) {
    CHECK(extra == 0 && flags == 5);
    return size <= malloc_usable_size(block) ? malloc_usable_size(block) : malloc_usable_size(block) - 8;
}

static void patch_all(void) {
    t_malloc = patch(ALLOC, K_MALLOC, malloc);
    t_calloc = patch(CALLOC, K_CALLOC, nested_calloc);
    t_realloc = patch(REALLOC, K_REALLOC, realloc);
    t_reallocarray = patch(REALLOCARRAY, K_REALLOCARRAY, nested_reallocarray);
    t_posix_memalign = patch(POSIX_MEMALIGN, K_POSIX_MEMALIGN, posix_memalign);
    t_memalign = patch(MEMALIGN, K_MEMALIGN, nested_memalign);
    t_mallocx = patch(ALLOC_FIRST, K_MALLOCX, mallocx);
    t_rallocx = patch(RALLOCX, K_RALLOCX, rallocx);
    t_xallocx = patch(XALLOCX, K_XALLOCX, xallocx);
    t_free = patch(FREE, K_FREE, free);
    t_delete = patch(FREE, K_DELETE, nested_delete);
    t_delete_jump = patch(FREE, K_DELETE, jumping_delete);
    jump_target = t_free;
    entry_of(t_calloc)->flags = entry_of(t_free)->flags = 1; /* ENTRY_GLIBC */
    entry_of(t_malloc)->flags = 1 | 4; /* and ENTRY_FLAT */
    entry_of(t_mallocx)->helper = (uint64_t)malloc_usable_size;
}

static void every_shape(void) {
    begin();
    void *a = t_malloc(100), *b = t_calloc(3, 50);
    void *c = t_realloc(a, 5000);
    void *d = t_reallocarray(b, 10, 100);
    void *e = NULL, *f = t_memalign(256, 333), *g = t_mallocx(65, 64, 7);
    CHECK(t_posix_memalign(&e, 128, 77) == 0 && (uintptr_t)e % 128 == 0 && (uintptr_t)f % 256 == 0);
    CHECK(t_posix_memalign(&e, 3, 77) == EINVAL);
    void *h = t_rallocx(g, 9000, 64);
    size_t usable = malloc_usable_size(h), c_usable = malloc_usable_size(c);
    CHECK(t_xallocx(h, usable - 1, 0, 5) == usable && t_xallocx(h, usable + 1, 0, 5) < usable);
    t_free(c), t_free(NULL), t_delete(d), t_delete_jump(e), t_free(f);
    errno = 12345;
    t_free(h);
    CHECK(errno == 12345);
    end(18, "every shape, the outermost call only");
    struct event *x = expect(0, TAG_ALLOC, K_MALLOC, (uint64_t)a);
    CHECK(x->words[1] == 100 && x->slack == 4, "slack %d", x->slack);
    x = expect(1, TAG_ALLOC, K_CALLOC, (uint64_t)b);
    CHECK(x->words[1] == 150 && x->flags & 16);
    expect(2, TAG_FREE, K_REALLOC, (uint64_t)a);
    x = expect(3, TAG_ALLOC, K_REALLOC, (uint64_t)c);
    CHECK(x->words[1] == 5000 && x->words[2] == (uint64_t)a && x->flags == 1 && x->slack == 0xffff && c_usable >= 5000);
    expect(4, TAG_FREE, K_REALLOCARRAY, (uint64_t)b);
    CHECK(expect(5, TAG_ALLOC, K_REALLOCARRAY, (uint64_t)d)->words[1] == 1000);
    CHECK(expect(6, TAG_ALLOC, K_MEMALIGN, (uint64_t)f)->words[1] == 333);
    x = expect(7, TAG_ALLOC, K_MALLOCX, (uint64_t)g);
    CHECK(x->words[1] == 65 && x->slack >= 63 && x->slack < 100);
    CHECK(expect(8, TAG_ALLOC, K_POSIX_MEMALIGN, (uint64_t)e)->words[1] == 77);
    expect(9, TAG_FREE, K_RALLOCX, (uint64_t)g);
    expect(10, TAG_ALLOC, K_RALLOCX, (uint64_t)h);
    expect(11, TAG_FREE, K_XALLOCX, (uint64_t)h);
    CHECK(expect(12, TAG_ALLOC, K_XALLOCX, (uint64_t)h)->words[1] == usable - 1);
    expect(13, TAG_FREE, K_FREE, (uint64_t)c);
    expect(14, TAG_FREE, K_DELETE, (uint64_t)d);
    expect(15, TAG_FREE, K_DELETE, (uint64_t)e);
    expect(16, TAG_FREE, K_FREE, (uint64_t)f);
    expect(17, TAG_FREE, K_FREE, (uint64_t)h);
}

// The same block, released again by the same call with nothing recorded in between: another thread had it meanwhile.
static void handed_over(void) {
    begin();
    void *block = malloc(64);
    struct entry *e = entry_of(t_free);
    uint64_t real = e->real;
    void nothing(void *p);
    e->real = (uint64_t)nothing;
    for (int i = 0; i < 3; i++) t_free(block);
    e->real = real;
    free(block);
    end(3, "a block that came back by another thread");
}
void nothing(void *p) { (void)p; }

// ---- stacks ----

__attribute__((noinline)) static void *deep(int n) {
    void *block = n ? deep(n - 1) : t_malloc(10);
    __asm__ volatile("" ::: "memory");
    return block;
}

static void stacks(uint64_t main_start, uint64_t main_end) {
    begin();
    void *a = deep(0), *b = deep(50);
    t_free(a), t_free(b);
    end(4, "stacks");
    CHECK(events[1].depth == events[0].depth + 50, "%d and %d", events[0].depth, events[1].depth);
    CHECK(events[0].leaf >= (uint64_t)deep && events[0].leaf < (uint64_t)deep + 200);
    CHECK(events[0].depth >= 5, "deep, stacks, main, two of libc's, _start: %d", events[0].depth);
    CHECK(events[0].root >= main_start && events[0].root < main_end, "the root is _start");
    CHECK(modules_met >= 2, "%d modules", modules_met);
}

// ---- ways out of a real function ----

static jmp_buf out;
__attribute__((noinline)) static void *leaves(size_t size) {
    (void)size;
    longjmp(out, 1);
}
static void left_by_longjmp(void) {
    void *(*t_leaves)(size_t) = patch(ALLOC, K_MALLOC, leaves);
    begin();
    for (int i = 0; i < 10; i++) {
        if (setjmp(out) == 0) t_leaves(10);
        void *a = t_malloc(11), *b = deep(i);
        t_free(a), t_free(b);
    }
    end(40, "after longjmp out of the real function");
}

static void *(*t_raises)(size_t);
static int handler_runs;
static void on_signal(int signal) {
    (void)signal;
    handler_runs++;
    t_free(t_malloc(20));
}
static void *raises(size_t size) {
    raise(SIGUSR1);
    return malloc(size);
}
static void signals(void) {
    stack_t alternate = {.ss_sp = reserve(65536, PROT_READ | PROT_WRITE), .ss_size = 65536}, old;
    CHECK(sigaltstack(&alternate, &old) == 0);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    t_raises = patch(ALLOC, K_MALLOC, raises);
    begin();
    void *a = t_raises(30);
    t_free(a);
    CHECK(handler_runs == 1);
    end(4, "a signal handler on its own stack inside the real function");
    sigaltstack(&old, NULL);
}

static ucontext_t main_context, fiber_context;
static void fiber(void) {
    t_free(t_malloc(40));
    swapcontext(&fiber_context, &main_context);
    t_free(t_malloc(41));
}
static void *switches(size_t size) {
    swapcontext(&main_context, &fiber_context);
    return malloc(size);
}
static void fibers(void) {
    void *(*t_switches)(size_t) = patch(ALLOC, K_MALLOC, switches);
    static char far[4 << 20];
    getcontext(&fiber_context);
    fiber_context.uc_stack = (stack_t){.ss_sp = far + (2 << 20), .ss_size = 1 << 20};
    fiber_context.uc_link = &main_context;
    makecontext(&fiber_context, fiber, 0);
    begin();
    void *a = t_switches(42), *b = t_switches(43);
    t_free(a), t_free(b);
    end(8, "fibers inside the real function");
}

// ---- operator new ----

static uint64_t new_returns_to;
static int new_calls;
static jmp_buf thrown;
__attribute__((noinline)) static void *throwing_new(size_t size, size_t align) {
    CHECK(size == 1234 && align == 4096);
    new_calls++;
    new_returns_to = (uint64_t)__builtin_return_address(0);
    longjmp(thrown, 1);
}
static int is_out_of_memory;
static void *nothrow_new(size_t size, size_t align, const void *nothrow) {
    CHECK(size == 1234 && align == 4096 && nothrow);
    return is_out_of_memory ? NULL : t_malloc(size);
}
static void operator_new(void) {
    void *(*t_new)(size_t, size_t) = patch(NEW, K_NEW, throwing_new);
    entry_of(t_new)->helper = (uint64_t)nothrow_new;
    begin();
    void *block = t_new(1234, 4096);
    CHECK(block && new_calls == 0);
    t_free(block);
    is_out_of_memory = 1;
    if (setjmp(thrown) == 0) t_new(1234, 4096);
    CHECK(new_calls == 1);
    CHECK(new_returns_to >= (uint64_t)operator_new && new_returns_to < (uint64_t)operator_new + 1000, "a frame of the library's");
    end(2, "operator new");
    expect(0, TAG_ALLOC, K_NEW, (uint64_t)block);
}

// ---- pools ----

static char pool_memory[1 << 16];
static size_t pool_used;
static double pool_sum;
static void *pool_alloc(void *pool, size_t size, double x, size_t count, double y, int five, int six) {
    CHECK(pool == pool_memory && five == 5 && six == 6);
    void *of_heap = t_malloc(8);
    t_free(of_heap);
    pool_sum += x + y;
    void *block = pool_memory + pool_used;
    pool_used += size * count;
    return block;
}
static void *(*t_pool_alloc)(void *, size_t, double, size_t, double, int, int);
static void *pool_strdup(void *pool, size_t size, double x, size_t count, double y, int five, int six) {
    return t_pool_alloc(pool, size, x, count, y, five, six); // its own function, nested
}
static int pool_free(void *pool, void *block, double x) {
    CHECK(pool == pool_memory && block);
    pool_sum += x;
    return 77;
}
static void *pool_realloc(void *pool, void *block, size_t size) {
    (void)size;
    CHECK(pool == pool_memory);
    return (char *)block + 8;
}
static void pools(void) {
    t_pool_alloc = patch(POOL_ALLOC, K_POOL_ALLOC, pool_alloc);
    void *(*t_strdup)(void *, size_t, double, size_t, double, int, int) = patch(POOL_ALLOC, K_POOL_ALLOC, pool_strdup);
    int (*t_pool_free)(void *, void *, double) = patch(POOL_FREE, K_POOL_FREE, pool_free);
    void *(*t_pool_realloc)(void *, void *, size_t) = patch(POOL_REALLOC, K_POOL_REALLOC, pool_realloc);
    struct entry *all[] = {entry_of(t_pool_alloc), entry_of(t_strdup), entry_of(t_pool_free), entry_of(t_pool_realloc)};
    for (int i = 0; i < 4; i++) all[i]->pool = 37;
    all[0]->size_argument = all[1]->size_argument = 1;
    all[0]->count_argument = all[1]->count_argument = 2;
    all[2]->block_argument = all[3]->block_argument = 1;
    all[3]->size_argument = 2;
    begin();
    char *a = t_pool_alloc(pool_memory, 24, 0.5, 2, 0.25, 5, 6), *b = t_strdup(pool_memory, 8, 1.0, 3, 2.0, 5, 6);
    CHECK(pool_sum == 3.75, "%f", pool_sum);
    char *c = t_pool_realloc(pool_memory, a, 99);
    CHECK(c == a + 8 && t_pool_free(pool_memory, c, 10.0) == 77 && t_pool_free(pool_memory, b, 20.0) == 77 && pool_sum == 33.75);
    end(10, "pools");
    CHECK(expect(0, TAG_ALLOC, K_MALLOC, events[0].words[0])->words[1] == 8);
    struct event *e = expect(2, TAG_ALLOC, K_POOL_ALLOC, (uint64_t)a);
    CHECK(e->words[1] == 48 && e->flags == 37 << 2 && e->slack == 0xffff);
    CHECK(expect(5, TAG_ALLOC, K_POOL_ALLOC, (uint64_t)b)->words[1] == 24);
    CHECK(expect(6, TAG_FREE, K_POOL_REALLOC, (uint64_t)a)->flags == (37 << 2 | 3));
    CHECK(expect(7, TAG_ALLOC, K_POOL_REALLOC, (uint64_t)c)->flags == (37 << 2 | 1));
    CHECK(expect(8, TAG_FREE, K_POOL_FREE, (uint64_t)c)->flags == (37 << 2 | 2));
}

// ---- maps and exec ----

static void maps(void) {
    void *(*t_mmap)(void *, size_t, int, int, int, off_t) = patch(MMAP, K_MMAP, mmap);
    int (*t_munmap)(void *, size_t) = patch(MUNMAP, K_MUNMAP, munmap);
    void *(*t_mremap)(void *, size_t, size_t, int, ...) = patch(MREMAP, K_MREMAP, mremap);
    begin();
    void *a = t_mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(t_mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
    void *b = t_mremap(a, 8192, 65536, MREMAP_MAYMOVE);
    CHECK(t_munmap(b, 65536) == 0);
    end(3, "maps");
    struct event *e = expect(0, TAG_MAP, K_MMAP, (uint64_t)a);
    CHECK(e->words[1] == 8192 && e->words[2] == ((uint64_t)(MAP_PRIVATE | MAP_ANONYMOUS) << 32 | PROT_READ) && e->words[3] == -1ul);
    CHECK(expect(1, TAG_REMAP, K_MREMAP, (uint64_t)a)->words[2] == (uint64_t)b);
    CHECK(expect(2, TAG_UNMAP, K_MUNMAP, (uint64_t)b)->words[1] == 65536);
}

static void execs(void) {
    int (*t_execl)(const char *, const char *, ...) = patch(EXEC, 0, execl);
    begin();
    CHECK(t_execl("/nowhere/at/all", "x", "1", "2", "3", "4", "5", "6", (char *)NULL) == -1 && errno == ENOENT);
    end(1, "exec");
    expect(0, TAG_PROCESS, 1, getpid());
}

// ---- calls that are none of the program's, odd stacks ----

static void from_inside(void) {
    begin();
    struct entry *e = entry_of(t_malloc);
    e->inside_start = (uint64_t)deep;
    e->inside_end = (uint64_t)deep + 200;
    void *hidden = deep(3), *seen = t_malloc(9);
    e->inside_start = e->inside_end = 0;
    t_free(hidden), t_free(seen);
    end(3, "calls from the allocator itself");
}

static void misaligned(void) {
    begin();
    void *block;
    __asm__ volatile("movq %%rsp, %%rbx\n\tandq $-16, %%rsp\n\tsubq $8, %%rsp\n\tcall *%2\n\tmovq %%rbx, %%rsp"
                     : "=a"(block)
                     : "D"(50ul), "r"(t_malloc)
                     : "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
    __asm__ volatile("movq %%rsp, %%rbx\n\tandq $-16, %%rsp\n\tsubq $8, %%rsp\n\tcall *%1\n\tmovq %%rbx, %%rsp"
                     :
                     : "D"(block), "r"(t_free)
                     : "rax", "rbx", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
    end(2, "a misaligned stack");
}

// ---- threads ----

enum { WORKERS = 8, ROUNDS = 20000, CHURN = 100000, BATCH = 50 };
static atomic_int running;

static void *work(void *argument) {
    size_t number = (size_t)argument;
    for (int i = 0; i < ROUNDS; i++) {
        void *a = t_calloc(1, 1000 + number), *b = t_reallocarray(a, 2, 1000 + number);
        t_delete(b);
    }
    running--;
    return (void *)(size_t)syscall(SYS_gettid);
}

static void many_threads(void) {
    begin();
    pthread_t threads[WORKERS];
    running = WORKERS;
    for (size_t i = 0; i < WORKERS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    while (running) drain();
    uint32_t tids[WORKERS];
    for (int i = 0; i < WORKERS; i++) {
        void *tid;
        pthread_join(threads[i], &tid);
        tids[i] = (size_t)tid;
    }
    end((size_t)WORKERS * ROUNDS * 4, "eight threads at once");
    for (size_t i = 0; i < event_count; i++)
        if (events[i].tag == TAG_ALLOC && events[i].kind == K_CALLOC) CHECK(events[i].tid == tids[events[i].words[1] - 1000]);
}

static uint32_t churn_tids[CHURN];
static void *churn(void *argument) {
    size_t number = (size_t)argument;
    churn_tids[number] = syscall(SYS_gettid);
    free(t_malloc(number + 1));
    return NULL;
}

// Thread pointers come back at once: a thread must never write under the name of one that had its control block before.
static void thread_churn(void) {
    begin();
    for (size_t i = 0; i < CHURN; i += BATCH) {
        pthread_t threads[BATCH];
        for (size_t j = 0; j < BATCH; j++) CHECK(pthread_create(&threads[j], NULL, churn, (void *)(i + j)) == 0);
        for (size_t j = 0; j < BATCH; j++) pthread_join(threads[j], NULL);
        if (i % 1000 == 0) drain();
    }
    end(CHURN, "a hundred thousand threads");
    for (size_t i = 0; i < event_count; i++) CHECK(events[i].tid == churn_tids[events[i].words[1] - 1], "a stale state was used");
    CHECK(control->streams_high < 1200, "%u streams", control->streams_high);
}

// ---- forks, sessions, a hound that is gone ----

static void forks(void) {
    begin();
    void *before = t_malloc(70);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 1000; i++) t_free(t_calloc(1, 71));
        _exit(attachment->ring != (uint64_t)control ? 0 : 9);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "status %#x", status);
    t_free(before);
    end(2, "a fork");
    CHECK(attachment->ring == (uint64_t)control);
}

static void sessions(void) {
    begin();
    void *a = t_malloc(80);
    drain();
    uint32_t stream = events[0].stream;
    modules_met = 0;
    change(0);
    t_free(t_malloc(81));
    for (uint32_t s = 0; s < control->streams_high; s++)
        if (streams[s].state == 1) ignored[s] = 1, generation_of[s] = streams[s].generation;
    control->library = 0;
    attachment->session++;
    change(1);
    t_free(a);
    end(2, "a second session");
    CHECK(events[1].stream != stream && modules_met > 0 && control->library == 1);
}

static void a_dead_hound(void) {
    begin();
    control->limit = 2;
    control->patience_ms = 20;
    int calls = 0;
    while (control->state & 1) {
        free(t_malloc(90));
        CHECK(++calls < 10000000, "it goes on without hound");
    }
    CHECK(control->library == 2 && control->bow_out == 1);
    for (int i = 0; i < 1000; i++) free(t_malloc(91));
    drain();
    size_t recorded = event_count;
    CHECK(recorded < (size_t)calls + 1 && recorded + 1 >= (size_t)calls, "%zu of %d", recorded, calls);
    control->library = control->bow_out = 0;
    control->limit = 192;
    attachment->session++;
    change(1);
    begin();
    free(t_malloc(92));
    end(1, "a hound that is gone, and the next one");
}

extern char __executable_start, etext;

int main(int argc, char **argv) {
    CHECK(argc == 3);
    setvbuf(stdout, NULL, _IOLBF, 0);
    stack_of = reserve(STREAMS * sizeof *stack_of, PROT_READ | PROT_WRITE);
    attach(argv[1], argv[2]);
    patch_all();
    t_free(t_malloc(1));
    CHECK(control->streams_high == 0 && control->library == 0, "dormant");
    change(1);
    every_shape();
    handed_over();
    stacks((uint64_t)&__executable_start, (uint64_t)&etext);
    left_by_longjmp();
    signals();
    fibers();
    operator_new();
    pools();
    maps();
    execs();
    from_inside();
    misaligned();
    many_threads();
    thread_churn();
    forks();
    sessions();
    a_dead_hound();
    printf("PASS all\n");
    return 0;
}
