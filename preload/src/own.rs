//! Memory that the library maps by itself while it runs, written down so that whoever takes the library out of a target finds all of it.
//!
//! The list lies in the image: the child of a fork has a copy, which says what the child has.

use core::sync::atomic::{AtomicU64, Ordering};

use hound_common::attach::{OWN_PIECES, Piece};

use crate::sys;

static PIECES: [Piece; OWN_PIECES] = [const { Piece { start: AtomicU64::new(0), bytes: AtomicU64::new(0) } }; OWN_PIECES];

/// Where the list is.
pub fn pieces() -> u64 {
    (&raw const PIECES) as u64
}

/// New zeroed private memory; `None` if there is none, or no place left to write it down.
#[cold]
pub fn map(bytes: usize) -> Option<*mut u8> {
    let memory = sys::map_private(bytes, false)?;
    for piece in &PIECES {
        if piece.start.load(Ordering::Relaxed) == 0
            && piece.start.compare_exchange(0, memory as u64, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            piece.bytes.store(bytes as u64, Ordering::Release);
            return Some(memory);
        }
    }
    // SAFETY: nobody knows the mapping yet.
    unsafe { sys::unmap(memory, bytes) };
    None
}

/// Takes memory from [`map`] away.
///
/// # Safety
/// Nobody may use it any more.
#[cold]
pub unsafe fn unmap(memory: *mut u8, bytes: usize) {
    // Crossed out first: what is mapped there a moment later may be the program's.
    if let Some(piece) = PIECES.iter().find(|piece| piece.start.load(Ordering::Relaxed) == memory as u64) {
        piece.bytes.store(0, Ordering::Relaxed);
        piece.start.store(0, Ordering::Release);
    }
    // SAFETY: the caller's promise.
    unsafe { sys::unmap(memory, bytes) };
}
