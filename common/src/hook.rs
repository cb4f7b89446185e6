//! The one list of hooked functions. Exported symbols, injected patches and uprobes are all derived from it.
//!
//! A new hooked function is one line in [`HOOKS`] (plus its body in `preload/src/hooks.rs` if its signature is new), or, where it can
//! only be patched and not interposed, one line in [`PATCHES`].

use crate::attach::{ENTRY_FREES, NO_ARGUMENT, Shape};

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
    /// jemalloc's `mallocx`
    Mallocx = 12,
    /// jemalloc's `rallocx`
    Rallocx = 13,
    /// jemalloc's `xallocx`: resized where it is.
    Xallocx = 14,
    /// A function that the user named with `--hook alloc=…`: a block cut from other memory.
    PoolAlloc = 15,
    /// A function that the user named with `--hook realloc=…`.
    PoolRealloc = 16,
    /// The kernel's `kmalloc`. The kinds of the kernel's own memory are of no function that could be hooked.
    Kmalloc = 17,
    /// The kernel's `kmem_cache_alloc`.
    KmemCacheAlloc = 18,
    /// The kernel's memory of which each processor has its own.
    PercpuAlloc = 19,
    /// Whole pages of the kernel's.
    PageAlloc = 20,
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
    /// The kernel's `kfree`.
    Kfree = 41,
    /// The kernel's `kmem_cache_free`.
    KmemCacheFree = 42,
    /// A release of [`Kind::PercpuAlloc`].
    PercpuFree = 43,
    /// A release of [`Kind::PageAlloc`].
    PageFree = 44,
    /// `mmap`, `mmap64`
    Mmap = 64,
    /// `munmap`
    Munmap = 65,
    /// `mremap`
    Mremap = 66,
}

/// Every kind with its name in reports.
const KINDS: &[(Kind, &str)] = &[
    (Kind::Malloc, "malloc"),
    (Kind::Calloc, "calloc"),
    (Kind::Realloc, "realloc"),
    (Kind::Reallocarray, "reallocarray"),
    (Kind::PosixMemalign, "posix_memalign"),
    (Kind::Memalign, "memalign"),
    (Kind::AlignedAlloc, "aligned_alloc"),
    (Kind::Valloc, "valloc"),
    (Kind::Pvalloc, "pvalloc"),
    (Kind::New, "operator new"),
    (Kind::NewArray, "operator new[]"),
    (Kind::Mallocx, "mallocx"),
    (Kind::Rallocx, "rallocx"),
    (Kind::Xallocx, "xallocx"),
    (Kind::PoolAlloc, "pool alloc"),
    (Kind::PoolRealloc, "pool realloc"),
    (Kind::Kmalloc, "kmalloc"),
    (Kind::KmemCacheAlloc, "kmem_cache_alloc"),
    (Kind::PercpuAlloc, "alloc_percpu"),
    (Kind::PageAlloc, "alloc_pages"),
    (Kind::Free, "free"),
    (Kind::FreeSized, "free_sized"),
    (Kind::FreeAlignedSized, "free_aligned_sized"),
    (Kind::Cfree, "cfree"),
    (Kind::Delete, "operator delete"),
    (Kind::DeleteArray, "operator delete[]"),
    (Kind::Dallocx, "dallocx"),
    (Kind::Sdallocx, "sdallocx"),
    (Kind::PoolFree, "pool free"),
    (Kind::Kfree, "kfree"),
    (Kind::KmemCacheFree, "kmem_cache_free"),
    (Kind::PercpuFree, "free_percpu"),
    (Kind::PageFree, "free_pages"),
    (Kind::Mmap, "mmap"),
    (Kind::Munmap, "munmap"),
    (Kind::Mremap, "mremap"),
];

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_u8(number: u8) -> Option<Self> {
        KINDS.iter().map(|(kind, _)| *kind).find(|kind| *kind as u8 == number)
    }

    /// Every kind.
    pub fn all() -> impl Iterator<Item = Self> + Clone {
        KINDS.iter().map(|(kind, _)| *kind)
    }

    /// What functions of this kind do: the number tells.
    pub fn role(self) -> Role {
        match self {
            Self::Realloc | Self::Reallocarray | Self::Rallocx | Self::Xallocx | Self::PoolRealloc => Role::Realloc,
            Self::Mmap | Self::Munmap | Self::Mremap => Role::Map,
            kind if (kind as u8) < Self::Free as u8 => Role::Alloc,
            _ => Role::Free,
        }
    }

    /// The function's usual name, as reports print it.
    pub fn name(self) -> &'static str {
        match KINDS.iter().find(|(kind, _)| *kind == self) {
            Some((_, name)) => name,
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
    /// How it takes its arguments.
    pub shape: Shape,
}

const fn hook(symbol: &'static str, name: &'static str, kind: Kind, role: Role, shape: Shape) -> Hook {
    Hook { symbol, name, kind, role, shape }
}

/// Every function that libhound.so exports in the place of the allocator's or libc's own.
pub const HOOKS: &[Hook] = &[
    hook("malloc", "malloc", Kind::Malloc, Role::Alloc, Shape::Alloc),
    hook("calloc", "calloc", Kind::Calloc, Role::Alloc, Shape::Calloc),
    hook("realloc", "realloc", Kind::Realloc, Role::Realloc, Shape::Realloc),
    hook("reallocarray", "reallocarray", Kind::Reallocarray, Role::Realloc, Shape::Reallocarray),
    hook("posix_memalign", "posix_memalign", Kind::PosixMemalign, Role::Alloc, Shape::PosixMemalign),
    hook("memalign", "memalign", Kind::Memalign, Role::Alloc, Shape::Memalign),
    hook("aligned_alloc", "aligned_alloc", Kind::AlignedAlloc, Role::Alloc, Shape::Memalign),
    hook("valloc", "valloc", Kind::Valloc, Role::Alloc, Shape::Alloc),
    hook("pvalloc", "pvalloc", Kind::Pvalloc, Role::Alloc, Shape::Alloc),
    hook("free", "free", Kind::Free, Role::Free, Shape::Free),
    hook("free_sized", "free_sized", Kind::FreeSized, Role::Free, Shape::Free),
    hook("free_aligned_sized", "free_aligned_sized", Kind::FreeAlignedSized, Role::Free, Shape::Free),
    hook("cfree", "cfree", Kind::Cfree, Role::Free, Shape::Free),
    hook("mmap", "mmap", Kind::Mmap, Role::Map, Shape::Mmap),
    hook("mmap64", "mmap", Kind::Mmap, Role::Map, Shape::Mmap),
    hook("munmap", "munmap", Kind::Munmap, Role::Map, Shape::Munmap),
    hook("mremap", "mremap", Kind::Mremap, Role::Map, Shape::Mremap),
];

/// Functions hooked to see that the process replaces itself, and to learn of code made at run time.
pub const WATCHED: &[&str] =
    &["execve", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "execveat", "__register_frame", "__deregister_frame"];

/// Functions hooked in programs that hound starts: the moment of a fork must be known, for the child begins with a copy of what its parent holds;
/// and programs that they begin must find hound.
pub const BEGINNINGS: &[&str] = &["fork", "posix_spawn", "posix_spawnp"];

/// Functions by which a program may forbid itself the time stamp counter, or get a seccomp filter, behind which nothing is asked of hound any more. Exported by the library, and patched where children are recorded.
pub const FILTERING: &[&str] = &["prctl", "syscall"];

/// Functions that begin a program in a way of their own, which is not recorded behind a filter: hooked to count it.
pub const SHELLS: &[&str] = &["system", "popen"];

/// Which allocator has a function, and under which names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Further names of [`HOOKS`]: glibc's, and what other allocators put in the place of those and of BSD's.
    Glibc,
    /// jemalloc, behind the prefix it was built with.
    Jemalloc,
    /// mimalloc.
    Mimalloc,
    /// snmalloc, by the names that its crate for Rust gives it.
    Snmalloc,
    /// tcmalloc: gperftools' names.
    Tcmalloc,
    /// C++ operators, in a module whose allocator brings its own.
    Operator,
}

/// A function that is patched in a running target and never interposed.
#[derive(Clone, Copy, Debug)]
pub struct Patch {
    /// Its symbol, without jemalloc's prefix.
    pub symbol: &'static str,
    /// Whose it is.
    pub origin: Origin,
    /// Its number in events.
    pub kind: Kind,
    /// How it takes its arguments.
    pub shape: Shape,
    /// For [`Shape::New`]: the symbol of the one that returns null where this one throws.
    pub nothrow: Option<&'static str>,
    /// Where its arguments are, for shapes that do not say it.
    pub places: Places,
    /// Bits of `ENTRY_…`.
    pub flags: u8,
}

/// Which arguments of a function (0 to 5) mean what; [`NO_ARGUMENT`] for what it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The size.
    pub size: u8,
    /// The count that the size is multiplied with.
    pub count: u8,
    /// The block.
    pub block: u8,
}

impl Places {
    /// The shape says it all.
    pub const NONE: Places = Places { size: NO_ARGUMENT, count: NO_ARGUMENT, block: NO_ARGUMENT };
}

const fn patch(symbol: &'static str, origin: Origin, kind: Kind, shape: Shape) -> Patch {
    Patch { symbol, origin, kind, shape, nothrow: None, places: Places::NONE, flags: 0 }
}

const fn throws(symbol: &'static str, origin: Origin, kind: Kind, nothrow: &'static str) -> Patch {
    Patch { nothrow: Some(nothrow), ..patch(symbol, origin, kind, Shape::New) }
}

/// What patched functions take beyond the usual, and where.
impl Patch {
    const fn size(self, size: u8) -> Patch {
        Patch { places: Places { size, ..self.places }, ..self }
    }

    const fn count(self, count: u8) -> Patch {
        Patch { places: Places { count, ..self.places }, ..self }
    }

    const fn block(self, block: u8) -> Patch {
        Patch { places: Places { block, ..self.places }, ..self }
    }

    const fn frees(self) -> Patch {
        Patch { flags: ENTRY_FREES, ..self }
    }
}

/// A mimalloc function whose arguments lie where the shape cannot tell.
const fn wide(symbol: &'static str, kind: Kind) -> Patch {
    let shape = if matches!(kind, Kind::Realloc | Kind::Reallocarray) { Shape::WideRealloc } else { Shape::Wide };
    patch(symbol, Origin::Mimalloc, kind, shape)
}

/// Every function that is patched in a running target besides [`HOOKS`] and [`WATCHED`].
pub const PATCHES: &[Patch] = &[
    patch("__libc_malloc", Origin::Glibc, Kind::Malloc, Shape::Alloc),
    patch("__libc_calloc", Origin::Glibc, Kind::Calloc, Shape::Calloc),
    patch("__libc_realloc", Origin::Glibc, Kind::Realloc, Shape::Realloc),
    patch("__libc_memalign", Origin::Glibc, Kind::Memalign, Shape::Memalign),
    patch("__libc_valloc", Origin::Glibc, Kind::Valloc, Shape::Alloc),
    patch("__libc_pvalloc", Origin::Glibc, Kind::Pvalloc, Shape::Alloc),
    patch("__libc_free", Origin::Glibc, Kind::Free, Shape::Free),
    patch("__libc_reallocarray", Origin::Glibc, Kind::Reallocarray, Shape::Reallocarray),
    patch("__libc_cfree", Origin::Glibc, Kind::Cfree, Shape::Free),
    patch("__posix_memalign", Origin::Glibc, Kind::PosixMemalign, Shape::PosixMemalign),
    patch("_aligned_malloc", Origin::Glibc, Kind::AlignedAlloc, Shape::Memalign),
    patch("reallocf", Origin::Glibc, Kind::Realloc, Shape::Realloc).frees(),
    patch("reallocarr", Origin::Glibc, Kind::Reallocarray, Shape::Reallocarr),
    patch("vfree", Origin::Glibc, Kind::Free, Shape::Free),
    patch("mallocx", Origin::Jemalloc, Kind::Mallocx, Shape::AllocFirst),
    patch("rallocx", Origin::Jemalloc, Kind::Rallocx, Shape::Rallocx),
    patch("xallocx", Origin::Jemalloc, Kind::Xallocx, Shape::Xallocx),
    patch("dallocx", Origin::Jemalloc, Kind::Dallocx, Shape::Free),
    patch("sdallocx", Origin::Jemalloc, Kind::Sdallocx, Shape::Free),
    patch("sn_malloc", Origin::Snmalloc, Kind::Malloc, Shape::Alloc),
    patch("sn_calloc", Origin::Snmalloc, Kind::Calloc, Shape::Calloc),
    patch("sn_realloc", Origin::Snmalloc, Kind::Realloc, Shape::Realloc),
    patch("sn_free", Origin::Snmalloc, Kind::Free, Shape::Free),
    patch("sn_rust_alloc", Origin::Snmalloc, Kind::AlignedAlloc, Shape::Memalign),
    patch("sn_rust_alloc_zeroed", Origin::Snmalloc, Kind::Calloc, Shape::Memalign),
    patch("sn_rust_realloc", Origin::Snmalloc, Kind::Realloc, Shape::WideRealloc).block(0).size(3),
    patch("sn_rust_dealloc", Origin::Snmalloc, Kind::Free, Shape::Free),
    patch("mi_malloc", Origin::Mimalloc, Kind::Malloc, Shape::Alloc),
    patch("mi_malloc_small", Origin::Mimalloc, Kind::Malloc, Shape::Alloc),
    patch("mi_zalloc", Origin::Mimalloc, Kind::Calloc, Shape::Alloc),
    patch("mi_zalloc_small", Origin::Mimalloc, Kind::Calloc, Shape::Alloc),
    patch("mi_calloc", Origin::Mimalloc, Kind::Calloc, Shape::Calloc),
    patch("mi_mallocn", Origin::Mimalloc, Kind::Malloc, Shape::Calloc),
    patch("mi_malloc_aligned", Origin::Mimalloc, Kind::AlignedAlloc, Shape::AllocFirst),
    patch("mi_malloc_aligned_at", Origin::Mimalloc, Kind::AlignedAlloc, Shape::AllocFirst),
    patch("mi_zalloc_aligned", Origin::Mimalloc, Kind::AlignedAlloc, Shape::AllocFirst),
    patch("mi_zalloc_aligned_at", Origin::Mimalloc, Kind::AlignedAlloc, Shape::AllocFirst),
    patch("mi_realloc", Origin::Mimalloc, Kind::Realloc, Shape::Realloc),
    patch("mi_rezalloc", Origin::Mimalloc, Kind::Realloc, Shape::Realloc),
    patch("mi_reallocf", Origin::Mimalloc, Kind::Realloc, Shape::Realloc).frees(),
    patch("mi_reallocarr", Origin::Mimalloc, Kind::Reallocarray, Shape::Reallocarr),
    patch("mi_reallocn", Origin::Mimalloc, Kind::Reallocarray, Shape::Reallocarray),
    patch("mi_reallocarray", Origin::Mimalloc, Kind::Reallocarray, Shape::Reallocarray),
    patch("mi_recalloc", Origin::Mimalloc, Kind::Reallocarray, Shape::Reallocarray),
    patch("mi_realloc_aligned", Origin::Mimalloc, Kind::Realloc, Shape::Rallocx),
    patch("mi_rezalloc_aligned", Origin::Mimalloc, Kind::Realloc, Shape::Rallocx),
    patch("mi_posix_memalign", Origin::Mimalloc, Kind::PosixMemalign, Shape::PosixMemalign),
    patch("mi_memalign", Origin::Mimalloc, Kind::Memalign, Shape::Memalign),
    patch("mi_aligned_alloc", Origin::Mimalloc, Kind::AlignedAlloc, Shape::Memalign),
    patch("mi_valloc", Origin::Mimalloc, Kind::Valloc, Shape::Alloc),
    patch("mi_pvalloc", Origin::Mimalloc, Kind::Pvalloc, Shape::Alloc),
    wide("mi_calloc_aligned", Kind::Calloc).count(0).size(1),
    wide("mi_calloc_aligned_at", Kind::Calloc).count(0).size(1),
    wide("mi_realloc_aligned_at", Kind::Realloc).block(0).size(1),
    wide("mi_rezalloc_aligned_at", Kind::Realloc).block(0).size(1),
    wide("mi_recalloc_aligned", Kind::Reallocarray).block(0).count(1).size(2),
    wide("mi_recalloc_aligned_at", Kind::Reallocarray).block(0).count(1).size(2),
    wide("mi_aligned_recalloc", Kind::Reallocarray).block(0).count(1).size(2),
    wide("mi_aligned_offset_recalloc", Kind::Reallocarray).block(0).count(1).size(2),
    // The block stays where it is, or null comes back and nothing was done.
    patch("mi_expand", Origin::Mimalloc, Kind::Xallocx, Shape::Rallocx),
    patch("mi__expand", Origin::Mimalloc, Kind::Xallocx, Shape::Rallocx),
    patch("mi_strdup", Origin::Mimalloc, Kind::Malloc, Shape::Text),
    patch("mi_strndup", Origin::Mimalloc, Kind::Malloc, Shape::Text),
    patch("mi_mbsdup", Origin::Mimalloc, Kind::Malloc, Shape::Text),
    patch("mi_realpath", Origin::Mimalloc, Kind::Malloc, Shape::Text).block(1),
    // Version 3: the size that the block really has comes back through a pointer.
    patch("mi_umalloc", Origin::Mimalloc, Kind::Malloc, Shape::AllocFirst),
    patch("mi_umalloc_small", Origin::Mimalloc, Kind::Malloc, Shape::AllocFirst),
    patch("mi_uzalloc_small", Origin::Mimalloc, Kind::Calloc, Shape::AllocFirst),
    patch("mi_umalloc_aligned", Origin::Mimalloc, Kind::AlignedAlloc, Shape::AllocFirst),
    patch("mi_uzalloc_aligned", Origin::Mimalloc, Kind::AlignedAlloc, Shape::AllocFirst),
    wide("mi_ucalloc", Kind::Calloc).count(0).size(1),
    wide("mi_urealloc", Kind::Realloc).block(0).size(1),
    patch("mi_ufree", Origin::Mimalloc, Kind::Free, Shape::Free),
    patch("mi_free_small", Origin::Mimalloc, Kind::Free, Shape::Free),
    // (heap, size): taken like (align, size), of which only the size is looked at.
    patch("mi_heap_malloc", Origin::Mimalloc, Kind::Malloc, Shape::Memalign),
    patch("mi_heap_malloc_small", Origin::Mimalloc, Kind::Malloc, Shape::Memalign),
    patch("mi_heap_zalloc", Origin::Mimalloc, Kind::Calloc, Shape::Memalign),
    patch("mi_heap_zalloc_small", Origin::Mimalloc, Kind::Calloc, Shape::Memalign),
    patch("mi_theap_malloc", Origin::Mimalloc, Kind::Malloc, Shape::Memalign),
    patch("mi_theap_malloc_small", Origin::Mimalloc, Kind::Malloc, Shape::Memalign),
    patch("mi_theap_zalloc", Origin::Mimalloc, Kind::Calloc, Shape::Memalign),
    patch("mi_theap_zalloc_small", Origin::Mimalloc, Kind::Calloc, Shape::Memalign),
    wide("mi_theap_malloc_aligned", Kind::AlignedAlloc).size(1),
    wide("mi_theap_calloc", Kind::Calloc).count(1).size(2),
    wide("mi_theap_realloc", Kind::Realloc).block(1).size(2),
    wide("mi_heap_calloc", Kind::Calloc).count(1).size(2),
    wide("mi_heap_mallocn", Kind::Malloc).count(1).size(2),
    wide("mi_heap_malloc_aligned", Kind::AlignedAlloc).size(1),
    wide("mi_heap_malloc_aligned_at", Kind::AlignedAlloc).size(1),
    wide("mi_heap_zalloc_aligned", Kind::AlignedAlloc).size(1),
    wide("mi_heap_zalloc_aligned_at", Kind::AlignedAlloc).size(1),
    wide("mi_heap_calloc_aligned", Kind::Calloc).count(1).size(2),
    wide("mi_heap_calloc_aligned_at", Kind::Calloc).count(1).size(2),
    wide("mi_heap_realloc", Kind::Realloc).block(1).size(2),
    wide("mi_heap_reallocf", Kind::Realloc).block(1).size(2).frees(),
    wide("mi_heap_rezalloc", Kind::Realloc).block(1).size(2),
    wide("mi_heap_realloc_aligned", Kind::Realloc).block(1).size(2),
    wide("mi_heap_realloc_aligned_at", Kind::Realloc).block(1).size(2),
    wide("mi_heap_rezalloc_aligned", Kind::Realloc).block(1).size(2),
    wide("mi_heap_rezalloc_aligned_at", Kind::Realloc).block(1).size(2),
    wide("mi_heap_reallocn", Kind::Reallocarray).block(1).count(2).size(3),
    wide("mi_heap_recalloc", Kind::Reallocarray).block(1).count(2).size(3),
    wide("mi_heap_recalloc_aligned", Kind::Reallocarray).block(1).count(2).size(3),
    wide("mi_heap_recalloc_aligned_at", Kind::Reallocarray).block(1).count(2).size(3),
    patch("mi_heap_strdup", Origin::Mimalloc, Kind::Malloc, Shape::Text),
    patch("mi_heap_strndup", Origin::Mimalloc, Kind::Malloc, Shape::Text),
    patch("mi_heap_realpath", Origin::Mimalloc, Kind::Malloc, Shape::Text).block(2),
    patch("mi_new_nothrow", Origin::Mimalloc, Kind::New, Shape::Alloc),
    patch("mi_new_aligned_nothrow", Origin::Mimalloc, Kind::New, Shape::AllocFirst),
    throws("mi_new", Origin::Mimalloc, Kind::New, "mi_new_nothrow"),
    throws("mi_new_aligned", Origin::Mimalloc, Kind::New, "mi_new_aligned_nothrow"),
    throws("mi_new_n", Origin::Mimalloc, Kind::New, "mi_mallocn").count(0).size(1),
    throws("mi_new_realloc", Origin::Mimalloc, Kind::Realloc, "mi_realloc").block(0).size(1),
    throws("mi_new_reallocn", Origin::Mimalloc, Kind::Reallocarray, "mi_reallocn").block(0).count(1).size(2),
    throws("mi_heap_alloc_new", Origin::Mimalloc, Kind::New, "mi_heap_malloc").size(1),
    throws("mi_heap_alloc_new_n", Origin::Mimalloc, Kind::New, "mi_heap_mallocn").count(1).size(2),
    patch("mi_free", Origin::Mimalloc, Kind::Free, Shape::Free),
    patch("mi_cfree", Origin::Mimalloc, Kind::Cfree, Shape::Free),
    patch("mi_free_size", Origin::Mimalloc, Kind::FreeSized, Shape::Free),
    patch("mi_free_aligned", Origin::Mimalloc, Kind::Free, Shape::Free),
    patch("mi_free_size_aligned", Origin::Mimalloc, Kind::FreeAlignedSized, Shape::Free),
    patch("tc_malloc", Origin::Tcmalloc, Kind::Malloc, Shape::Alloc),
    patch("tc_malloc_skip_new_handler", Origin::Tcmalloc, Kind::Malloc, Shape::Alloc),
    patch("tc_calloc", Origin::Tcmalloc, Kind::Calloc, Shape::Calloc),
    patch("tc_realloc", Origin::Tcmalloc, Kind::Realloc, Shape::Realloc),
    patch("tc_memalign", Origin::Tcmalloc, Kind::Memalign, Shape::Memalign),
    patch("tc_posix_memalign", Origin::Tcmalloc, Kind::PosixMemalign, Shape::PosixMemalign),
    patch("tc_valloc", Origin::Tcmalloc, Kind::Valloc, Shape::Alloc),
    patch("tc_pvalloc", Origin::Tcmalloc, Kind::Pvalloc, Shape::Alloc),
    patch("tc_free", Origin::Tcmalloc, Kind::Free, Shape::Free),
    patch("tc_cfree", Origin::Tcmalloc, Kind::Cfree, Shape::Free),
    patch("tc_free_sized", Origin::Tcmalloc, Kind::FreeSized, Shape::Free),
    patch("sdallocx", Origin::Tcmalloc, Kind::Sdallocx, Shape::Free),
    patch("tc_sdallocx", Origin::Tcmalloc, Kind::Sdallocx, Shape::Free),
    throws("tc_new", Origin::Tcmalloc, Kind::New, "tc_new_nothrow"),
    throws("tc_newarray", Origin::Tcmalloc, Kind::NewArray, "tc_newarray_nothrow"),
    throws("tc_new_aligned", Origin::Tcmalloc, Kind::New, "tc_new_aligned_nothrow"),
    throws("tc_newarray_aligned", Origin::Tcmalloc, Kind::NewArray, "tc_newarray_aligned_nothrow"),
    patch("tc_new_nothrow", Origin::Tcmalloc, Kind::New, Shape::AllocFirst),
    patch("tc_newarray_nothrow", Origin::Tcmalloc, Kind::NewArray, Shape::AllocFirst),
    patch("tc_new_aligned_nothrow", Origin::Tcmalloc, Kind::New, Shape::AllocFirst),
    patch("tc_newarray_aligned_nothrow", Origin::Tcmalloc, Kind::NewArray, Shape::AllocFirst),
    patch("tc_delete", Origin::Tcmalloc, Kind::Delete, Shape::Free),
    patch("tc_delete_sized", Origin::Tcmalloc, Kind::Delete, Shape::Free),
    patch("tc_delete_nothrow", Origin::Tcmalloc, Kind::Delete, Shape::Free),
    patch("tc_delete_aligned", Origin::Tcmalloc, Kind::Delete, Shape::Free),
    patch("tc_delete_sized_aligned", Origin::Tcmalloc, Kind::Delete, Shape::Free),
    patch("tc_delete_aligned_nothrow", Origin::Tcmalloc, Kind::Delete, Shape::Free),
    patch("tc_deletearray", Origin::Tcmalloc, Kind::DeleteArray, Shape::Free),
    patch("tc_deletearray_sized", Origin::Tcmalloc, Kind::DeleteArray, Shape::Free),
    patch("tc_deletearray_nothrow", Origin::Tcmalloc, Kind::DeleteArray, Shape::Free),
    patch("tc_deletearray_aligned", Origin::Tcmalloc, Kind::DeleteArray, Shape::Free),
    patch("tc_deletearray_sized_aligned", Origin::Tcmalloc, Kind::DeleteArray, Shape::Free),
    patch("tc_deletearray_aligned_nothrow", Origin::Tcmalloc, Kind::DeleteArray, Shape::Free),
    throws("_Znwm", Origin::Operator, Kind::New, "_ZnwmRKSt9nothrow_t"),
    throws("_Znam", Origin::Operator, Kind::NewArray, "_ZnamRKSt9nothrow_t"),
    throws("_ZnwmSt11align_val_t", Origin::Operator, Kind::New, "_ZnwmSt11align_val_tRKSt9nothrow_t"),
    throws("_ZnamSt11align_val_t", Origin::Operator, Kind::NewArray, "_ZnamSt11align_val_tRKSt9nothrow_t"),
    patch("_ZnwmRKSt9nothrow_t", Origin::Operator, Kind::New, Shape::AllocFirst),
    patch("_ZnamRKSt9nothrow_t", Origin::Operator, Kind::NewArray, Shape::AllocFirst),
    patch("_ZnwmSt11align_val_tRKSt9nothrow_t", Origin::Operator, Kind::New, Shape::AllocFirst),
    patch("_ZnamSt11align_val_tRKSt9nothrow_t", Origin::Operator, Kind::NewArray, Shape::AllocFirst),
    patch("_ZdlPv", Origin::Operator, Kind::Delete, Shape::Free),
    patch("_ZdlPvm", Origin::Operator, Kind::Delete, Shape::Free),
    patch("_ZdlPvRKSt9nothrow_t", Origin::Operator, Kind::Delete, Shape::Free),
    patch("_ZdlPvSt11align_val_t", Origin::Operator, Kind::Delete, Shape::Free),
    patch("_ZdlPvmSt11align_val_t", Origin::Operator, Kind::Delete, Shape::Free),
    patch("_ZdlPvSt11align_val_tRKSt9nothrow_t", Origin::Operator, Kind::Delete, Shape::Free),
    patch("_ZdaPv", Origin::Operator, Kind::DeleteArray, Shape::Free),
    patch("_ZdaPvm", Origin::Operator, Kind::DeleteArray, Shape::Free),
    patch("_ZdaPvRKSt9nothrow_t", Origin::Operator, Kind::DeleteArray, Shape::Free),
    patch("_ZdaPvSt11align_val_t", Origin::Operator, Kind::DeleteArray, Shape::Free),
    patch("_ZdaPvmSt11align_val_t", Origin::Operator, Kind::DeleteArray, Shape::Free),
    patch("_ZdaPvSt11align_val_tRKSt9nothrow_t", Origin::Operator, Kind::DeleteArray, Shape::Free),
];

/// Exported functions that sound like an allocator's and are not hooked, each with the reason. A `*` at the end stands for any.
pub const EXCEPTED: &[(&str, &str)] = &[
    ("malloc_usable_size", SIZE),
    ("malloc_size", SIZE),
    ("malloc_good_size", SIZE),
    ("nallocx", SIZE),
    ("sallocx", SIZE),
    ("tc_nallocx", SIZE),
    ("tc_malloc_size", SIZE),
    ("mi_malloc_size", SIZE),
    ("mi_malloc_good_size", SIZE),
    ("mi_malloc_usable_size", SIZE),
    ("mi_usable_size", SIZE),
    ("mallctl", "steers the allocator; what `arena.N.reset` releases stays counted as live"),
    ("mallctlbymib", "as mallctl"),
    ("mallctlnametomib", "looks a name up"),
    ("malloc_stats", TELLS),
    ("malloc_stats_print", TELLS),
    ("tc_malloc_stats", TELLS),
    ("malloc_info", TELLS),
    ("malloc_trim", "gives free memory back; no block changes"),
    ("malloc_set_state", "no more than a stub since glibc 2.26"),
    ("malloc_get_state", "no more than a stub since glibc 2.26"),
    ("TCMallocGetenvSafe", "reads the environment"),
    ("MallocHook_*", "tells of calls that are hooked"),
    ("MallocExtension_*", TELLS),
    ("malloc_conf", "data"),
    ("malloc_message", "data"),
    ("je_test_hooks_arena_new_hook", "data"),
    ("je_test_hooks_libc_hook", "data"),
    ("tcmalloc_sys_alloc", "data"),
    ("tc_query_new_mode", TELLS),
    ("tc_set_new_mode", "a switch"),
    ("mi_register_deferred_free", "a switch"),
    ("mi_heap_new", HEAP),
    ("mi_heap_new_in_arena", HEAP),
    ("mi_heap_delete", HEAP),
    ("mi_heap_destroy", "releases a heap's blocks without naming them: they stay counted as live"),
    ("mi_wcsdup", WINDOWS),
    ("mi_dupenv_s", WINDOWS),
    ("mi_wdupenv_s", WINDOWS),
];
const SIZE: &str = "tells a size, allocates nothing";
const TELLS: &str = "tells of the allocator, allocates nothing";
const HEAP: &str = "makes or ends a heap; its blocks are seen one by one";
const WINDOWS: &str = "for Windows programs only: where it allocates past hooked functions, hound does not see it";

/// How a function of [`WATCHED`] is patched.
pub fn watched_shape(symbol: &str) -> Option<Shape> {
    match symbol {
        "__register_frame" => Some(Shape::RegisterFrame),
        "__deregister_frame" => Some(Shape::DeregisterFrame),
        _ => WATCHED.contains(&symbol).then_some(Shape::Exec),
    }
}

/// Functions a program may call to steer the recording, exported beside [`HOOKS`].
pub const PROGRAM_API: &[&str] = &[
    "memory_profiler_start",
    "memory_profiler_stop",
    "memory_profiler_sync",
    "memory_profiler_set_marker",
    "memory_profiler_override_next_timestamp",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_and_a_number_of_its_own() {
        for (at, (kind, name)) in KINDS.iter().enumerate() {
            assert_eq!(Kind::from_u8(*kind as u8), Some(*kind));
            assert_eq!(kind.name(), *name);
            assert!(KINDS[..at].iter().all(|(other, _)| other != kind));
        }
        for hook in HOOKS {
            assert_eq!((hook.kind.name(), hook.kind.role()), (hook.name, hook.role));
        }
    }

    #[test]
    fn each_function_is_listed_once_and_says_where_its_arguments_are() {
        for (at, patch) in PATCHES.iter().enumerate() {
            assert!(PATCHES[..at].iter().all(|p| p.symbol != patch.symbol || p.origin != patch.origin), "{} twice", patch.symbol);
            assert!(EXCEPTED.iter().all(|(name, _)| *name != patch.symbol), "{} is hooked", patch.symbol);
            let has = |place: u8| place != NO_ARGUMENT;
            match patch.shape {
                Shape::Wide => assert!(has(patch.places.size) && !has(patch.places.block), "{}", patch.symbol),
                Shape::WideRealloc => assert!(has(patch.places.size) && has(patch.places.block), "{}", patch.symbol),
                Shape::New => assert_eq!(has(patch.places.block), patch.kind.role() == Role::Realloc, "{}", patch.symbol),
                _ => assert!(!has(patch.places.size), "{}", patch.symbol),
            }
        }
    }

    #[test]
    fn what_throws_has_one_that_does_not_beside_it() {
        for patch in PATCHES {
            assert_eq!(patch.shape == Shape::New, patch.nothrow.is_some(), "{}", patch.symbol);
            if let Some(nothrow) = patch.nothrow {
                assert!(PATCHES.iter().any(|p| p.symbol == nothrow && p.origin == patch.origin), "{nothrow}");
            }
        }
    }
}
