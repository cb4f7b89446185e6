//! What the kernel's program is told of a function.

use hound_common::attach::{NO_ARGUMENT, Shape};
use hound_common::kernel::{Cookie, DOES_ALLOC, DOES_FREE, DOES_REALLOC, DOES_RESIZE, NOTHING};

use crate::custom::CustomHook;
use crate::families::Function;

const PLAIN: Cookie = Cookie { kind: 0, does: DOES_ALLOC, size: NOTHING, count: NOTHING, block: NOTHING, out: NOTHING, pool: 0, pushes: 0 };

/// The cookie of a function; `None` for functions that are not probed: those that map memory (the kernel's own events tell of them), that
/// replace the process or register code, and `reallocarr`, whose block is not among its arguments: what it calls is probed.
pub(crate) fn cookie(function: &Function) -> Option<Cookie> {
    let argument = |place: u8| if place == NO_ARGUMENT { NOTHING } else { place };
    let places = function.places;
    let plain = Cookie { kind: function.kind, ..PLAIN };
    let listed = Cookie { size: argument(places.size), count: argument(places.count), block: argument(places.block), ..plain };
    Some(match function.shape {
        Shape::Alloc | Shape::AllocFirst => Cookie { size: 0, ..plain },
        Shape::Calloc => Cookie { count: 0, size: 1, ..plain },
        Shape::Realloc | Shape::Rallocx => Cookie { does: DOES_REALLOC, block: 0, size: 1, ..plain },
        Shape::Reallocarray => Cookie { does: DOES_REALLOC, block: 0, count: 1, size: 2, ..plain },
        Shape::PosixMemalign => Cookie { out: 0, size: 2, ..plain },
        Shape::Memalign => Cookie { size: 1, ..plain },
        Shape::Xallocx => Cookie { does: DOES_RESIZE, block: 0, size: 1, ..plain },
        Shape::Free => Cookie { does: DOES_FREE, block: 0, ..plain },
        Shape::New if places.size == NO_ARGUMENT => Cookie { size: 0, ..plain },
        Shape::New if places.block == NO_ARGUMENT => listed,
        Shape::New | Shape::WideRealloc => Cookie { does: DOES_REALLOC, ..listed },
        // How long the text is nobody knows at the call; `block`, where it has one, is the place that the caller gave for it.
        Shape::Wide | Shape::Text => listed,
        // The user says which arguments: see `of_pool`.
        Shape::PoolAlloc | Shape::PoolFree | Shape::PoolRealloc => return None,
        Shape::Mmap | Shape::Munmap | Shape::Mremap => return None,
        Shape::Exec | Shape::Fork | Shape::Prctl | Shape::Syscall => return None,
        Shape::RegisterFrame | Shape::DeregisterFrame | Shape::Reallocarr => return None,
    })
}

/// The cookie of a pool's function.
pub(crate) fn of_pool(function: &Function, hook: &CustomHook) -> Cookie {
    let argument = |place: Option<u8>| place.unwrap_or(NOTHING);
    let does = match hook.role {
        crate::custom::PoolRole::Alloc => DOES_ALLOC,
        crate::custom::PoolRole::Free => DOES_FREE,
        crate::custom::PoolRole::Realloc => DOES_REALLOC,
    };
    let [size, count, block] = [argument(hook.size), argument(hook.count), argument(hook.block)];
    Cookie { kind: function.kind, does, size, count, block, pool: hook.pool, ..PLAIN }
}
