//! Memory that the library maps by itself while it runs, written down so that whoever takes the library out of a target finds all of it.
//!
//! The list lies in the image: the child of a fork has a copy, which says what the child has.

use core::sync::atomic::{AtomicU64, Ordering};

use hound_common::attach::{OWN_HEAD, OWN_PIECES, Piece, own_bytes, own_mark};

use crate::sys;

static PIECES: [Piece; OWN_PIECES] = [const { Piece { start: AtomicU64::new(0), bytes: AtomicU64::new(0) } }; OWN_PIECES];

/// Where the list is.
pub fn pieces() -> u64 {
    (&raw const PIECES) as u64
}

/// New zeroed private memory, aligned to a cache line; `None` if there is none, or no place left to write it down.
#[cold]
pub fn map(bytes: usize) -> Option<*mut u8> {
    let bytes = own_bytes(bytes);
    let start = sys::map_private(bytes, false)?;
    // SAFETY: the first word of a new mapping, which nobody knows yet.
    unsafe { start.cast::<u64>().write(own_mark(start as u64)) };
    for piece in &PIECES {
        if piece.start.load(Ordering::Relaxed) == 0
            && piece.start.compare_exchange(0, start as u64, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            piece.bytes.store(bytes as u64, Ordering::Release);
            return Some(start.wrapping_add(OWN_HEAD));
        }
    }
    // SAFETY: nobody knows the mapping yet.
    unsafe { sys::unmap(start, bytes) };
    None
}

/// Takes `bytes` bytes from [`map`] away.
///
/// # Safety
/// Nobody may use them any more.
#[cold]
pub unsafe fn unmap(memory: *mut u8, bytes: usize) {
    let start = memory.wrapping_sub(OWN_HEAD);
    // Crossed out first: what is mapped there a moment later may be the program's.
    if let Some(piece) = PIECES.iter().find(|piece| piece.start.load(Ordering::Relaxed) == start as u64) {
        piece.bytes.store(0, Ordering::Relaxed);
        piece.start.store(0, Ordering::Release);
    }
    // SAFETY: the caller's promise.
    unsafe { sys::unmap(start, own_bytes(bytes)) };
}
