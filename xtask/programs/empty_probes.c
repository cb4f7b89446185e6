// empty_probes PID: sets probes that do nothing, as links of many probes, where somebody else's links have them in this process. Takes
// commands on standard input, a line each, and answers each with one line: `find` (looks at the links there are, says how many places),
// `set`, `clear`.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// From kernels newer than the header may be.
enum { TRACE_UPROBE_MULTI = 48, LINK_OF_UPROBES = 12 };

struct uprobes_info {
    uint32_t type, id, program, padding;
    uint64_t path, offsets, reference_counters, cookies;
    uint32_t path_size, count, flags, pid;
};

struct uprobes_create {
    uint32_t program, target, attach_type, flags;
    uint64_t path, offsets, reference_counters, cookies;
    uint32_t count, uprobe_flags, pid, padding;
};

enum { MOST_LINKS = 16, MOST_PLACES = 256 };

static struct {
    char path[4096];
    uint64_t offsets[MOST_PLACES];
    uint32_t count;
    int link;
} found[MOST_LINKS];
static int links;

static long bpf(int command, void *attributes, unsigned size) { return syscall(SYS_bpf, command, attributes, size); }

static _Noreturn void fail(const char *doing) {
    printf("cannot %s: %s\n", doing, strerror(errno));
    exit(1);
}

static int find(uint32_t pid) {
    uint32_t id = 0;
    int places = 0;
    links = 0;
    for (;;) {
        union bpf_attr next = {.start_id = id};
        if (bpf(BPF_LINK_GET_NEXT_ID, &next, sizeof next) != 0) return places; // no more
        id = next.next_id;
        union bpf_attr open = {.link_id = id};
        const int link = bpf(BPF_LINK_GET_FD_BY_ID, &open, sizeof open);
        if (link < 0) continue; // gone by now
        struct uprobes_info info = {.path = (uint64_t)found[links].path, .path_size = sizeof found[links].path,
                                    .offsets = (uint64_t)found[links].offsets, .count = MOST_PLACES};
        union bpf_attr ask = {.info = {.bpf_fd = link, .info_len = sizeof info, .info = (uint64_t)&info}};
        // Of a link of another kind the first words are asked: what the others mean there, nobody knows.
        struct uprobes_info kind = {0};
        union bpf_attr ask_kind = {.info = {.bpf_fd = link, .info_len = 16, .info = (uint64_t)&kind}};
        const int is_one = bpf(BPF_OBJ_GET_INFO_BY_FD, &ask_kind, sizeof ask_kind) == 0 && kind.type == LINK_OF_UPROBES &&
                           bpf(BPF_OBJ_GET_INFO_BY_FD, &ask, sizeof ask) == 0 && info.pid == pid;
        close(link);
        if (!is_one) continue;
        places += found[links].count = info.count;
        if (++links == MOST_LINKS) return places;
    }
}

static int empty_program(void) {
    const struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0}, {.code = BPF_JMP | BPF_EXIT}};
    union bpf_attr load = {.prog_type = BPF_PROG_TYPE_KPROBE, .insns = (uint64_t)code, .insn_cnt = 2, .license = (uint64_t)"GPL"};
    load.expected_attach_type = TRACE_UPROBE_MULTI;
    const int program = bpf(BPF_PROG_LOAD, &load, sizeof load);
    if (program < 0) fail("load an empty program");
    return program;
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "usage: empty_probes PID\n"), 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    const uint32_t pid = atoi(argv[1]);
    const int program = empty_program();
    char line[32];
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "find\n")) {
            printf("%d\n", find(pid));
            continue;
        }
        for (int i = 0; i < links; ++i) {
            if (!strcmp(line, "set\n")) {
                struct uprobes_create create = {.program = program, .attach_type = TRACE_UPROBE_MULTI, .path = (uint64_t)found[i].path,
                                                .offsets = (uint64_t)found[i].offsets, .count = found[i].count, .pid = pid};
                found[i].link = bpf(BPF_LINK_CREATE, &create, sizeof create);
                if (found[i].link < 0) fail("set probes");
            } else {
                close(found[i].link);
            }
        }
        printf("done\n");
    }
}
