//! The one list of hooked functions. Exported symbols, injected patches and uprobes are all derived from it.
//!
//! A new hooked function is one line in [`HOOKS`] (plus its body in `preload/src/hooks.rs` if its signature is new).

/// Which function made a block or released it. The numbers are part of the capture format: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// `malloc`
    Malloc = 1,
    /// `calloc`
    Calloc = 2,
    /// `realloc`
    Realloc = 3,
    /// `reallocarray`
    Reallocarray = 4,
    /// `posix_memalign`
    PosixMemalign = 5,
    /// `memalign`
    Memalign = 6,
    /// `aligned_alloc`
    AlignedAlloc = 7,
    /// `valloc`
    Valloc = 8,
    /// `pvalloc`
    Pvalloc = 9,
    /// C++ `operator new` of an allocator that defines its own.
    New = 10,
    /// C++ `operator new[]` of an allocator that defines its own.
    NewArray = 11,
    /// jemalloc's `mallocx`, and what takes size before alignment or flags.
    Mallocx = 12,
    /// jemalloc's `rallocx`
    Rallocx = 13,
    /// jemalloc's `xallocx`: resized where it is.
    Xallocx = 14,
    /// A function that the user named with `--hook alloc=…`: a block cut from other memory.
    PoolAlloc = 15,
    /// A function that the user named with `--hook realloc=…`.
    PoolRealloc = 16,
    /// `free`
    Free = 32,
    /// C23 `free_sized`
    FreeSized = 33,
    /// C23 `free_aligned_sized`
    FreeAlignedSized = 34,
    /// glibc's obsolete `cfree`
    Cfree = 35,
    /// C++ `operator delete` of an allocator that defines its own.
    Delete = 36,
    /// C++ `operator delete[]` of an allocator that defines its own.
    DeleteArray = 37,
    /// jemalloc's `dallocx`
    Dallocx = 38,
    /// jemalloc's `sdallocx`
    Sdallocx = 39,
    /// A function that the user named with `--hook free=…`.
    PoolFree = 40,
    /// `mmap`, `mmap64`
    Mmap = 64,
    /// `munmap`
    Munmap = 65,
    /// `mremap`
    Mremap = 66,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_u8(number: u8) -> Option<Self> {
        HOOKS.iter().map(|h| h.kind).find(|k| *k as u8 == number)
    }

    /// The function's usual name, as reports print it.
    pub fn name(self) -> &'static str {
        match HOOKS.iter().find(|h| h.kind == self) {
            Some(hook) => hook.name,
            None => "unknown",
        }
    }
}

/// What a hooked function does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Returns a new block.
    Alloc,
    /// May move a block.
    Realloc,
    /// Releases a block.
    Free,
    /// Changes the address space.
    Map,
}

/// One hooked function.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Its symbol.
    pub symbol: &'static str,
    /// Its name in reports: the symbol, demangled where it is mangled.
    pub name: &'static str,
    /// Its number in events.
    pub kind: Kind,
    /// What it does.
    pub role: Role,
}

const fn hook(symbol: &'static str, name: &'static str, kind: Kind, role: Role) -> Hook {
    Hook { symbol, name, kind, role }
}

/// Every function that libhound.so exports in the place of the allocator's or libc's own.
pub const HOOKS: &[Hook] = &[
    hook("malloc", "malloc", Kind::Malloc, Role::Alloc),
    hook("calloc", "calloc", Kind::Calloc, Role::Alloc),
    hook("realloc", "realloc", Kind::Realloc, Role::Realloc),
    hook("reallocarray", "reallocarray", Kind::Reallocarray, Role::Realloc),
    hook("posix_memalign", "posix_memalign", Kind::PosixMemalign, Role::Alloc),
    hook("memalign", "memalign", Kind::Memalign, Role::Alloc),
    hook("aligned_alloc", "aligned_alloc", Kind::AlignedAlloc, Role::Alloc),
    hook("valloc", "valloc", Kind::Valloc, Role::Alloc),
    hook("pvalloc", "pvalloc", Kind::Pvalloc, Role::Alloc),
    hook("free", "free", Kind::Free, Role::Free),
    hook("free_sized", "free_sized", Kind::FreeSized, Role::Free),
    hook("free_aligned_sized", "free_aligned_sized", Kind::FreeAlignedSized, Role::Free),
    hook("cfree", "cfree", Kind::Cfree, Role::Free),
    hook("mmap", "mmap", Kind::Mmap, Role::Map),
    hook("mmap64", "mmap", Kind::Mmap, Role::Map),
    hook("munmap", "munmap", Kind::Munmap, Role::Map),
    hook("mremap", "mremap", Kind::Mremap, Role::Map),
];

/// Functions hooked to see that the process replaces itself, and to learn of code made at run time.
pub const WATCHED: &[&str] =
    &["execve", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "execveat", "__register_frame", "__deregister_frame"];

/// Functions a program may call to steer the recording, exported beside [`HOOKS`].
pub const PROGRAM_API: &[&str] = &[
    "memory_profiler_start",
    "memory_profiler_stop",
    "memory_profiler_sync",
    "memory_profiler_set_marker",
    "memory_profiler_override_next_timestamp",
];
