// Reads and writes a file through io_uring, by system calls alone: several requests are under way at once in blocks from malloc, some of which are
// registered with the kernel, while the program allocates and releases others between submission and completion. One argument, "poll": a
// thread of the kernel takes the requests (IORING_SETUP_SQPOLL). What was written must come back. Blocks are released in the order of
// completions, which is the kernel's; a third of the requests is carried out by its workers, while the program goes on.
#define O_NO_HASH
#include "oracle.h"
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/uio.h>

#define ENTRIES 16
#define BLOCK 8192
#define ROUNDS 64
#define REGISTERED 4

static struct ring {
  int fd;
  unsigned flags, *sq_head, *sq_tail, *sq_mask, *sq_flags, *sq_array, *cq_head, *cq_tail, *cq_mask;
  struct io_uring_sqe *sqes;
  struct io_uring_cqe *cqes;
  struct iovec mapped[3];
} ring;

static char *map(int i, size_t size, uint64_t offset) {
  void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, (off_t)offset);
  O_CHECK(at != MAP_FAILED);
  ring.mapped[i] = (struct iovec){at, size};
  return (char *)at;
}

static void set_up(unsigned flags) {
  struct io_uring_params p = {.flags = flags, .sq_thread_idle = 1000};
  ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
  if (ring.fd < 0) { // the test says so
    dprintf(1, "the kernel refuses: %s\n", strerror(errno));
    _exit(77);
  }
  ring.flags = flags;
  size_t sq = p.sq_off.array + p.sq_entries * sizeof(unsigned), cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
  char *s = map(0, sq, IORING_OFF_SQ_RING), *c = map(1, cq, IORING_OFF_CQ_RING);
  ring.sqes = (struct io_uring_sqe *)map(2, p.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
  ring.sq_head = (unsigned *)(s + p.sq_off.head);
  ring.sq_tail = (unsigned *)(s + p.sq_off.tail);
  ring.sq_mask = (unsigned *)(s + p.sq_off.ring_mask);
  ring.sq_flags = (unsigned *)(s + p.sq_off.flags);
  ring.sq_array = (unsigned *)(s + p.sq_off.array);
  ring.cq_head = (unsigned *)(c + p.cq_off.head);
  ring.cq_tail = (unsigned *)(c + p.cq_off.tail);
  ring.cq_mask = (unsigned *)(c + p.cq_off.ring_mask);
  ring.cqes = (struct io_uring_cqe *)(c + p.cq_off.cqes);
}

static void request(int op, int file, void *block, uint64_t offset, int registered, uint64_t tag) {
  unsigned tail = *ring.sq_tail, at = tail & *ring.sq_mask;
  struct io_uring_sqe *e = &ring.sqes[at];
  memset(e, 0, sizeof *e);
  e->opcode = (uint8_t)op;
  e->fd = file;
  e->addr = (uint64_t)(uintptr_t)block;
  e->len = BLOCK;
  e->off = offset;
  if (registered >= 0) e->buf_index = (uint16_t)registered;
  e->user_data = tag;
  if (tag % 3 == 0) e->flags = IOSQE_ASYNC;
  ring.sq_array[at] = at;
  __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
}

static void enter(unsigned submit, unsigned wait) {
  unsigned flags = wait ? IORING_ENTER_GETEVENTS : 0;
  if (ring.flags & IORING_SETUP_SQPOLL) {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (__atomic_load_n(ring.sq_flags, __ATOMIC_RELAXED) & IORING_SQ_NEED_WAKEUP) flags |= IORING_ENTER_SQ_WAKEUP;
  }
  long n;
  while ((n = syscall(SYS_io_uring_enter, ring.fd, submit, wait, flags, NULL, 0)) < 0 && errno == EINTR) {}
  O_CHECK(n >= 0);
}

// The next completion's tag.
static uint64_t completed(void) {
  unsigned head = *ring.cq_head;
  while (__atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE) == head) enter(0, 1);
  struct io_uring_cqe *e = &ring.cqes[head & *ring.cq_mask];
  uint64_t tag = e->user_data;
  O_CHECK(e->res == BLOCK);
  __atomic_store_n(ring.cq_head, head + 1, __ATOMIC_RELEASE);
  return tag;
}

static unsigned char value(uint64_t round, int i, size_t at) { return (unsigned char)(round * 31 + (uint64_t)i * 7 + at); }

static void *fixed[REGISTERED];

// Eight requests at once, every second one in a registered block. Between submission and completion the heap is used.
static void __attribute__((noinline)) round_of(int file, uint64_t number, int writes) {
  void *block[8], *between[8];
  for (int i = 0; i < 8; i++) {
    int registered = i % 2 ? i / 2 : -1;
    block[i] = i % 2 ? fixed[i / 2] : o_malloc(BLOCK);
    unsigned char *bytes = (unsigned char *)block[i];
    for (size_t at = 0; at < BLOCK; at++) bytes[at] = writes ? value(number, i, at) : 0;
    int op = writes ? i % 2 ? IORING_OP_WRITE_FIXED : IORING_OP_WRITE : i % 2 ? IORING_OP_READ_FIXED : IORING_OP_READ;
    request(op, file, block[i], (number * 8 + (uint64_t)i) * BLOCK, registered, (uint64_t)i);
    between[i] = o_malloc(100 + (size_t)i);
  }
  enter(8, 0);
  for (int i = 0; i < 8; i++) between[i] = o_realloc(between[i], 5000 + (size_t)i);
  for (int n = 0; n < 8; n++) {
    uint64_t i = completed();
    O_CHECK(i < 8);
    unsigned char *bytes = (unsigned char *)block[i];
    for (size_t at = 0; at < BLOCK; at++) O_CHECK(bytes[at] == value(number, (int)i, at));
    if (i % 2 == 0) o_free(block[i]);
    o_free(between[i]);
  }
}

static nlink_t tasks(void) {
  struct stat all;
  O_CHECK(!stat("/proc/self/task", &all));
  return all.st_nlink;
}

int main(int argc, char **argv) {
  nlink_t before = tasks();
  set_up(argc > 1 && !strcmp(argv[1], "poll") ? IORING_SETUP_SQPOLL : 0);
  struct iovec list[REGISTERED];
  for (int i = 0; i < REGISTERED; i++) list[i].iov_base = fixed[i] = o_aligned_alloc(4096, BLOCK), list[i].iov_len = BLOCK;
  O_CHECK(!syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, list, REGISTERED));
  char name[] = "/tmp/io_uring-XXXXXX";
  int file = mkstemp(name);
  O_CHECK(file >= 0 && !unlink(name));
  for (uint64_t round = 0; round < ROUNDS; round++) round_of(file, round, 1);
  for (uint64_t round = 0; round < ROUNDS; round++) round_of(file, round, 0);
  O_CHECK(!syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0));
  for (int i = 0; i < REGISTERED - 1; i++) o_free(fixed[i]); // the last one leaks
  close(file);
  close(ring.fd);
  for (int i = 0; i < 3; i++) O_CHECK(!munmap(ring.mapped[i].iov_base, ring.mapped[i].iov_len));
  // The kernel's threads for the ring are this process's; they end when they come to it.
  while (tasks() > before) sched_yield();
  o_fact(0, 2 * ROUNDS * 8);
  return o_end(0);
}
