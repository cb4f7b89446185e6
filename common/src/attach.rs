//! What hound and a library that it maps into a running target agree on: the library's attachment block, the patched entries, the journal.
//!
//! hound maps the image of libhound.so itself: it needs no loader, and nothing is called in the target. The image has one writable
//! [`Attachment`] (symbol `hound_attachment`) and one table of hook stubs (symbol `hound_stubs`, indexed by [`Shape`]). hound fills in the
//! attachment before anything is patched; the library only reads it.
//!
//! Each patched function has an [`Entry`] and a thunk near its module: `mov r11, ENTRY; jmp STUB`. The stub takes the function's own
//! arguments, with the entry in r11 and the stack as it was at the call.

//!
//! # What hound may change, and when
//!
//! *Before anything is patched*: all of the attachment. `session` is raised last. `tid_offset` must be known: without thread-local storage
//! a thread is told by its thread pointer *and* the kernel thread id that its control block names.
//!
//! *A new hound, the same ring* (it has stopped or died before): set `Control::library` to `LIBRARY_ABSENT`, `bow_out` to 0, `patience_ms`,
//! `options`; bring `modules` and the like up to date; raise `session`; then `Control::change(true)`. Every thread then claims a new stream,
//! and what was known of modules is learnt again, as nobody has seen what was unloaded meanwhile. Streams that are owned when the session
//! is raised are of earlier sessions: a thread that was inside a hook all the time may still write to one, so they are left alone (not
//! drained into the new capture, not freed) until their thread is gone or hound has seen no thread inside the image.
//!
//! *A fresh ring, or the same one wiped* (streams and segments zeroed, [`Control::initialise`](crate::ring::Control::initialise) anew): only
//! while recording is off, all threads are stopped and none is inside the image (no ip, no word on a stack: as for unmapping it). The thread
//! states and the thread table are zeroed with it, `fork_mark` is set to 1, and `session` raised. The same way a process becomes a target
//! that was forked from one: a fork's child finds its `fork_mark` wiped, turns `ring` to a page of its own that never records, and is no
//! more than a process with a dormant library.
//!
//! *At any time*: what `Control` says may be changed while recording. Entries may be added (written before their patch); one that was ever
//! patched keeps its place and its content, as a thread may have been stopped in its thunk.

use core::sync::atomic::{AtomicU32, AtomicU64};

/// First word of an attachment: "HOUNDATT" in ASCII.
pub const MAGIC: u64 = u64::from_le_bytes(*b"HOUNDATT");
/// Changes with every incompatible change of this file.
pub const VERSION: u32 = 5;
/// Name of the ring's memfd, by which a later hound finds what an earlier one left in a target.
pub const RING_NAME: &str = "hound-ring";
/// Symbol of the [`Attachment`] in libhound.so.
pub const ATTACHMENT_SYMBOL: &str = "hound_attachment";
/// Symbol of the table of stubs: [`SHAPES`] addresses.
pub const STUBS_SYMBOL: &str = "hound_stubs";
/// Words of that table: the stubs by [`Shape`], then by shape what of a stub can be put before the function's own instructions ([`Inlined`]), 0
/// for none.
pub const STUB_WORDS: usize = 2 * SHAPES;

/// The library's block. All zero in a library that the loader has loaded.
#[repr(C)]
pub struct Attachment {
    /// [`MAGIC`] in the image itself, so that hound can check what it has found.
    pub magic: AtomicU64,
    /// [`VERSION`] in the image itself.
    pub version: AtomicU32,
    /// Set by hound when all else is filled in: the library is one that hound mapped.
    pub mapped: AtomicU32,
    /// The ring.
    pub ring: AtomicU64,
    /// `STREAMS` thread states, in memory that a fork wipes.
    pub states: AtomicU64,
    /// A page that a fork wipes; its first word is 1.
    pub fork_mark: AtomicU64,
    /// Table of [`THREAD_SLOTS`] states, then as many thread pointers, zeroed, in memory that a fork wipes: how a library without
    /// thread-local storage finds a thread's state.
    pub threads: AtomicU64,
    /// The library's image.
    pub image_start: AtomicU64,
    /// Its end.
    pub image_end: AtomicU64,
    /// Entries patched (or once patched), [`Entry`] each.
    pub entries: AtomicU64,
    /// How many entries there are.
    pub entry_count: AtomicU64,
    /// glibc's `_dl_find_object`, 0 if there is none: musl, stripped static programs, glibc before 2.35.
    pub dl_find_object: AtomicU64,
    /// The loader's `_r_debug`, 0 if there is none.
    pub r_debug: AtomicU64,
    /// Modules known to hound, [`KnownModule`] each: for targets without `_dl_find_object`. In writable memory: the library takes out
    /// (`end` = 0) what it sees unloaded.
    pub modules: AtomicU64,
    /// How many.
    pub module_count: AtomicU64,
    /// The dynamic loader's image, 0 if there is none.
    pub loader_start: AtomicU64,
    /// Its end.
    pub loader_end: AtomicU64,
    /// Distance from the thread pointer to the word that holds the kernel thread id (glibc 720, musl 48 or 56).
    pub tid_offset: AtomicU64,
    /// Program headers of the executable.
    pub executable_headers: AtomicU64,
    /// How many.
    pub executable_header_count: AtomicU64,
    /// Bias of the executable.
    pub executable_bias: AtomicU64,
    /// Counts hounds: raised by 1 before each [`change(true)`](crate::ring::Control::change) that begins a new one's recording.
    pub session: AtomicU64,
    /// `__vdso_clock_gettime`, for a ring whose clock is `CLOCK_MONOTONIC`; else 0.
    pub clock_gettime: AtomicU64,
    /// Which build of the library this is: see [`image_id`]. Set by hound.
    pub image: AtomicU64,
    /// Table of [`OWN_PIECES`] pieces that the library has mapped by itself, unused ones zero; 0 before it has run. In memory that a fork
    /// copies. For whoever takes the library out. Each begins with [`own_mark`].
    pub own_pieces: AtomicU64,
    /// How many pieces the table has room for.
    pub own_piece_count: AtomicU64,
    /// [`SAMPLES_BYTES`], zeroed, in memory that a fork wipes: the sampled blocks.
    pub samples: AtomicU64,
    /// [`Entries`](crate::family::Entries): where the processes find hound that this one begins; all zero if those are not recorded.
    pub family: AtomicU64,
    /// Room for more.
    pub reserved: AtomicU64,
}

/// Tells builds of libhound.so apart that have the same [`VERSION`]: a hash of the file (as FNV-1a, but of words: by bytes it takes two
/// milliseconds, and is made for each child that is patched).
pub fn image_id(file: &[u8]) -> u64 {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let (words, rest) = file.as_chunks::<8>();
    let words = words.iter().map(|bytes| u64::from_le_bytes(*bytes)).chain([word(rest), file.len() as u64]);
    words.fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| (hash ^ word).rotate_left(29).wrapping_mul(0x0000_0100_0000_01b3))
}

/// A thread's state: `STREAMS` of them lie at [`Attachment::states`], by their streams' indexes.
pub const STATE_BYTES: usize = 4096;
/// Where a state says that it is in use: the stack pointer at the entry of the hook at work, 0 if none is.
pub const STATE_BUSY: usize = 8;
/// Where it has what lies there: the hook's return address.
pub const STATE_BUSY_RA: usize = 16;
/// Before what lies in a piece that the library has mapped by itself: the mark, on a cache line of its own.
pub const OWN_HEAD: usize = 64;
/// What lies in one that is an environment for a program to be begun ([`crate::family`]): its address is the argument of an exec.
pub const ENVIRONMENT_BYTES: usize = 8 * crate::family::ROOM_ENTRIES + 3 * crate::family::PRELOAD_BYTES;

/// Bytes of a piece for so many of the library's.
pub const fn own_bytes(bytes: usize) -> usize {
    (OWN_HEAD + bytes).next_multiple_of(4096)
}

/// How many pieces the library may map by itself: one for each state, and for its tables.
pub const OWN_PIECES: usize = crate::ring::STREAMS + 64;

impl Attachment {
    /// The block as it stands in the image.
    pub const fn new() -> Self {
        #[expect(clippy::declare_interior_mutable_const, reason = "the initial value of each field")]
        const ZERO: AtomicU64 = AtomicU64::new(0);
        Attachment {
            magic: AtomicU64::new(MAGIC),
            version: AtomicU32::new(VERSION),
            mapped: AtomicU32::new(0),
            ring: ZERO,
            states: ZERO,
            fork_mark: ZERO,
            threads: ZERO,
            image_start: ZERO,
            image_end: ZERO,
            entries: ZERO,
            entry_count: ZERO,
            dl_find_object: ZERO,
            r_debug: ZERO,
            modules: ZERO,
            module_count: ZERO,
            loader_start: ZERO,
            loader_end: ZERO,
            tid_offset: ZERO,
            executable_headers: ZERO,
            executable_header_count: ZERO,
            executable_bias: ZERO,
            session: ZERO,
            clock_gettime: ZERO,
            image: ZERO,
            own_pieces: ZERO,
            own_piece_count: ZERO,
            samples: ZERO,
            family: ZERO,
            reserved: ZERO,
        }
    }
}

impl Default for Attachment {
    fn default() -> Self {
        Self::new()
    }
}

/// Slots of [`Attachment::threads`]: a power of two, twice the streams.
pub const THREAD_SLOTS: usize = 8192;

/// Counters of the filter before the table of sampled blocks: a byte each.
pub const SAMPLE_FILTER: usize = 1 << 16;
/// Places in the table of sampled blocks. At the default interval half of them stand for 64 GiB alive.
pub const SAMPLE_SLOTS: usize = 1 << 18;
/// Filter and table. Address space: a page is touched where a sampled block comes to lie.
pub const SAMPLES_BYTES: usize = SAMPLE_FILTER + SAMPLE_SLOTS * 8;

/// A module as hound sees it from outside.
#[repr(C)]
pub struct KnownModule {
    /// First avma.
    pub start: AtomicU64,
    /// End avma.
    pub end: AtomicU64,
    /// avma minus svma.
    pub bias: AtomicU64,
    /// avma of `.eh_frame_hdr`, 0 if there is none.
    pub eh_frame_hdr: AtomicU64,
    /// avma of its program headers.
    pub headers: AtomicU64,
    /// How many.
    pub header_count: AtomicU64,
    /// avma of a header that hound has made, shaped as `.eh_frame_hdr` with a sorted table, for a module that was linked without one; else 0.
    pub made_header: AtomicU64,
}

/// How a hooked function takes its arguments. The number is the index of its stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Shape {
    /// `(size) → block`: malloc, valloc, pvalloc, `operator new(size)` that cannot throw.
    Alloc = 0,
    /// `(count, size) → block`
    Calloc = 1,
    /// `(block, size) → block`
    Realloc = 2,
    /// `(block, count, size) → block`
    Reallocarray = 3,
    /// `(out, align, size) → errno`
    PosixMemalign = 4,
    /// `(align, size) → block`
    Memalign = 5,
    /// `(size, align or flags, …) → block`: mallocx, `mi_malloc_aligned`, `operator new(size, align)`, `operator new(size, nothrow)`.
    AllocFirst = 6,
    /// `(block, size, flags) → block`: rallocx, `mi_realloc_aligned`.
    Rallocx = 7,
    /// `(block, size, extra, flags) → new size`: xallocx resizes in place.
    Xallocx = 8,
    /// `(block, …)`, two more arguments at most: free, cfree, dallocx, sdallocx, every `operator delete`.
    Free = 9,
    /// `operator new` that throws: the nothrow one of [`Entry::helper`] is called first; where it fails the real one is jumped to, so
    /// that no frame of ours is on the stack when it throws.
    New = 10,
    /// `mmap`
    Mmap = 11,
    /// `munmap`
    Munmap = 12,
    /// `mremap`
    Mremap = 13,
    /// The exec family: noted, then jumped to.
    Exec = 14,
    /// A pool's function that returns a block; the size's and the count's places are in the entry.
    PoolAlloc = 15,
    /// A pool's function that takes a block back.
    PoolFree = 16,
    /// A pool's function that resizes a block.
    PoolRealloc = 17,
    /// `__register_frame(table)`
    RegisterFrame = 18,
    /// `__deregister_frame(table)`
    DeregisterFrame = 19,
    /// Returns a block; the size's and the count's places are in the entry, as for pools.
    Wide = 20,
    /// Resizes a block; the places are in the entry.
    WideRealloc = 21,
    /// Returns a text of its own, unless it was given a place for it ([`Entry::block_argument`]): strdup, realpath.
    Text = 22,
    /// `(block *, count, size) → errno`: NetBSD's reallocarr.
    Reallocarr = 23,
    /// `fork()`
    Fork = 24,
    /// `prctl(option, …)`, by which a seccomp filter may come.
    Prctl = 25,
    /// `syscall(number, …)`, likewise.
    Syscall = 26,
}

/// How many [`Shape`]s there are.
pub const SHAPES: usize = 27;
/// In [`Entry::size_argument`] and its like: there is none.
pub const NO_ARGUMENT: u8 = 255;
/// Most bytes of a function's entry that are displaced.
pub const DISPLACED: usize = 24;

/// The head of code that is copied between a thunk and the displaced instructions, which it comes to where there is nothing to record. It may
/// lie anywhere, finds the entry in r11, and leaves by a jump [`INLINED_EXIT`] bytes behind its first byte, where the stub is jumped to.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Inlined {
    /// Bytes of code behind this head.
    pub bytes: u32,
    /// Those of [`Entry::flags`] that an entry must have all of.
    pub flags: u32,
}

/// See [`Inlined`]; more than the code and the displaced instructions take.
pub const INLINED_EXIT: usize = 232;

/// A patched function.
#[repr(C)]
pub struct Entry {
    /// Where to call the function as if it were not patched: the displaced instructions, then a jump behind them.
    pub real: AtomicU64,
    /// Another function of the same family, 0 = none. For [`Shape::New`] the nothrow one's `real`: it is called with the size, the second
    /// argument as it is and the address of a `nothrow_t` as the third, or, where the entry says which argument is the size, with the same
    /// arguments; without it calls are passed on unrecorded. For the other shapes `malloc_usable_size`; not asked if [`ENTRY_GLIBC`] is set.
    pub helper: AtomicU64,
    /// Code of the allocator this function belongs to: what calls from there is the allocator itself, not the program. Both 0 for libc
    /// (what strdup allocates is the program's) and for executables.
    pub inside_start: AtomicU64,
    /// Its end.
    pub inside_end: AtomicU64,
    /// Where the patch is.
    pub address: AtomicU64,
    /// Its thunk.
    pub thunk: AtomicU64,
    /// The library's [`Attachment`], for [`Inlined`] code.
    pub attachment: AtomicU64,
    /// The entry's stub, likewise.
    pub stub: AtomicU64,
    /// One of `hook::Kind`.
    pub kind: u8,
    /// One of [`Shape`].
    pub shape: u8,
    /// Bits of `ENTRY_…`.
    pub flags: u8,
    /// For pools and wide shapes: which argument (0 to 5) is the size.
    pub size_argument: u8,
    /// For pools and wide shapes: which argument is the count, [`NO_ARGUMENT`] if none.
    pub count_argument: u8,
    /// For pools and wide shapes: which argument is the block.
    pub block_argument: u8,
    /// For pools: its number, 1 to 63.
    pub pool: u8,
    /// Bytes displaced at `address`.
    pub length: u8,
    /// What was there.
    pub original: [u8; DISPLACED],
    /// What hound wrote there.
    pub patched: [u8; DISPLACED],
}

/// [`Entry::flags`]: glibc's own allocator, whose chunk headers tell a block's usable size.
pub const ENTRY_GLIBC: u8 = 1;
/// [`Entry::flags`]: where it finds no memory, the old block is released (BSD's reallocf).
pub const ENTRY_FREES: u8 = 2;
/// [`Entry::flags`]: an allocator none of whose functions gets the block that it returns from another one that is patched. (glibc's `memalign` does
/// when it is asked for no more than any block has.)
pub const ENTRY_FLAT: u8 = 4;

/// One piece of memory that hound maps into a target, written down (in the ring's control page) before it is mapped, so that whoever finds
/// the ring after hound's death knows what else to take away.
#[repr(C)]
pub struct Piece {
    /// Where; 0 = no piece.
    pub start: AtomicU64,
    /// How long.
    pub bytes: AtomicU64,
}

/// The first word of a piece that the library has mapped by itself: by this it is told from memory that the target has mapped at the same
/// place after a hound had taken the piece away and died before it could say so.
pub const fn own_mark(start: u64) -> u64 {
    u64::from_le_bytes(*b"HOUNDOWN") ^ start
}

/// How many [`Piece`]s a control page has room for.
pub const PIECES: usize = 32;
