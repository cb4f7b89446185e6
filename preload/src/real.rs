//! The allocator's own functions, found once in the modules behind libhound.so.

use core::arch::naked_asm;
use core::ffi::{CStr, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::elf;

/// The functions as addresses; 0 = the target's libc has no such function.
macro_rules! real_functions {
    ($($name:ident: fn($($arg:ty),*) -> $result:ty;)*) => {
        $(
            /// Address and call of the real function of this name.
            #[expect(clippy::allow_attributes, reason = "some of the functions are jumped to, not called")]
            #[allow(dead_code, reason = "as above")]
            pub mod $name {
                use super::*;
                pub(crate) static ADDRESS: AtomicUsize = AtomicUsize::new(0);

                /// The real function, if the target has one.
                #[inline(always)]
                pub fn get() -> Option<unsafe extern "C" fn($($arg),*) -> $result> {
                    let address = ADDRESS.load(Ordering::Relaxed);
                    // SAFETY: null or the address of the function of that name, whose type is fixed by C or POSIX.
                    unsafe { core::mem::transmute::<usize, Option<unsafe extern "C" fn($($arg),*) -> $result>>(address) }
                }
            }
        )*
        const ALL: &[(&CStr, &AtomicUsize)] = &[$((
            match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) { Ok(name) => name, Err(_) => c"" },
            &$name::ADDRESS,
        )),*];
    };
}

real_functions! {
    malloc: fn(usize) -> *mut c_void;
    calloc: fn(usize, usize) -> *mut c_void;
    realloc: fn(*mut c_void, usize) -> *mut c_void;
    reallocarray: fn(*mut c_void, usize, usize) -> *mut c_void;
    posix_memalign: fn(*mut *mut c_void, usize, usize) -> i32;
    memalign: fn(usize, usize) -> *mut c_void;
    aligned_alloc: fn(usize, usize) -> *mut c_void;
    valloc: fn(usize) -> *mut c_void;
    pvalloc: fn(usize) -> *mut c_void;
    free: fn(*mut c_void) -> ();
    free_sized: fn(*mut c_void, usize) -> ();
    free_aligned_sized: fn(*mut c_void, usize, usize) -> ();
    cfree: fn(*mut c_void) -> ();
    malloc_usable_size: fn(*mut c_void) -> usize;
    mmap: fn(*mut c_void, usize, i32, i32, i32, i64) -> *mut c_void;
    munmap: fn(*mut c_void, usize) -> i32;
    mremap: fn(*mut c_void, usize, usize, i32, *mut c_void) -> *mut c_void;
    execve: fn() -> i32;
    execv: fn() -> i32;
    execvp: fn() -> i32;
    execvpe: fn() -> i32;
    execl: fn() -> i32;
    execlp: fn() -> i32;
    execle: fn() -> i32;
    fexecve: fn() -> i32;
    execveat: fn() -> i32;
    posix_spawn: fn() -> i32;
    posix_spawnp: fn() -> i32;
    fork: fn() -> i32;
    system: fn() -> i32;
    popen: fn() -> *mut c_void;
    prctl: fn(i32, usize, usize, usize, usize) -> i32;
    syscall: fn(usize, usize, usize, usize, usize, usize, usize) -> isize;
    __register_frame: fn(*mut c_void) -> ();
    __deregister_frame: fn(*mut c_void) -> ();
}

/// Set if `malloc` is glibc's own: its chunk headers then tell a block's usable size and arena.
static GLIBC: AtomicBool = AtomicBool::new(false);
/// Where the module lies that `malloc` is in, if it is not libc: its calls to itself are not the program's.
static ALLOCATOR_START: AtomicU64 = AtomicU64::new(0);
static ALLOCATOR_BYTES: AtomicU64 = AtomicU64::new(0);

/// Whether the real `malloc` is glibc's.
#[inline(always)]
pub fn is_glibc() -> bool {
    GLIBC.load(Ordering::Relaxed)
}

/// Whether a call from `ra` is the allocator calling itself. Never true for libc's own allocator: what strdup or fopen allocate is the
/// program's.
#[inline(always)]
pub fn is_allocator_inside(ra: u64) -> bool {
    ra.wrapping_sub(ALLOCATOR_START.load(Ordering::Relaxed)) < ALLOCATOR_BYTES.load(Ordering::Relaxed)
}

/// Finds all functions, in every module but the one at `own_dynamic`. False if there is no malloc or no free.
pub fn resolve(own_dynamic: u64) -> bool {
    OWN_DYNAMIC.store(own_dynamic, Ordering::Relaxed);
    for (name, address) in ALL {
        for module in elf::modules().filter(|m| m.dynamic_avma() != own_dynamic) {
            if let Some(found) = module.function(name) {
                address.store(found, Ordering::Relaxed);
                if *name == c"malloc" {
                    note_allocator(module);
                }
                break;
            }
        }
    }
    malloc::get().is_some() && free::get().is_some()
}

/// From now on a call of the real `malloc` is one of the real `calloc` (the documented variable `ZERO_MEMORY`). Nothing if there is none.
pub fn zero_memory() {
    if calloc::get().is_some() {
        malloc::ADDRESS.store(zeroed as *const () as usize, Ordering::Relaxed);
    }
}

#[unsafe(naked)]
extern "C" fn zeroed(_size: usize) -> *mut c_void {
    naked_asm!("mov rsi, rdi", "mov edi, 1", "jmp qword ptr [rip + {calloc}]", calloc = sym calloc::ADDRESS)
}

fn note_allocator(module: &elf::LinkMap) {
    if module.function(c"gnu_get_libc_version").is_some() {
        GLIBC.store(true, Ordering::Relaxed);
    } else if module.function(c"strlen").is_none() && module.function(c"abort").is_none() && module.bias != 0 {
        // SAFETY: a loaded module begins with its ELF header at the bias (position-independent) and stays: allocators are not unloaded.
        let headers = unsafe { elf::program_headers(module.bias) };
        let end = headers.iter().filter(|h| h.kind == elf::PT_LOAD).map(|h| h.svma + h.memory_size).max();
        ALLOCATOR_START.store(module.bias, Ordering::Relaxed);
        ALLOCATOR_BYTES.store(end.unwrap_or(0), Ordering::Relaxed);
    }
}

static OWN_DYNAMIC: AtomicU64 = AtomicU64::new(0);

/// libgcc's function if libgcc was loaded after start-up (with a plugin, say).
#[cold]
pub fn late_register_frame() -> Option<unsafe extern "C" fn(*mut c_void)> {
    late(c"__register_frame", &__register_frame::ADDRESS);
    __register_frame::get()
}

/// As [`late_register_frame`].
#[cold]
pub fn late_deregister_frame() -> Option<unsafe extern "C" fn(*mut c_void)> {
    late(c"__deregister_frame", &__deregister_frame::ADDRESS);
    __deregister_frame::get()
}

fn late(name: &CStr, address: &AtomicUsize) {
    let own = OWN_DYNAMIC.load(Ordering::Relaxed);
    if let Some(found) = elf::modules().filter(|m| m.dynamic_avma() != own).find_map(|m| m.function(name)) {
        address.store(found, Ordering::Relaxed);
    }
}
