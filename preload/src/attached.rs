//! The library as hound maps it into a running target: the block that hound fills in, and what is taken from it.
//!
//! In that mode nothing here was loaded by a loader: no constructor ran, there is no thread-local storage, and the target's symbols are not
//! looked up. What the library has to know stands in [`hound_attachment`].
//!
//! hound may give a new session (`Attachment::session`) while no function is being recorded. Whichever thread comes first takes over what
//! is new; several may do so at once, and all do the same.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use hound_common::attach::{Attachment, ENTRY_GLIBC, Entry, OWN_PIECES, Shape};
use hound_common::family::Entries;
use hound_common::ring::{CLOCK_MONOTONIC, Control, LIBRARY_ABSENT, LIBRARY_READY, OUT_NOT_PREPARED};

use crate::record::{Caller, Function};
use crate::thread::Thread;
use crate::{clock, directory, elf, family, modules, own, process, rows, samples, sys, thread, usual};

/// The block that hound fills in.
#[used]
#[unsafe(no_mangle)]
pub static hound_attachment: Attachment = Attachment::new();

// Exported, yet nobody else's can take its place: the stubs reach it without a table of addresses.
global_asm!(".protected hound_attachment");

/// The block. Not by way of the table of addresses, which the compiler would ask for an exported symbol's.
#[inline(always)]
pub fn attachment() -> &'static Attachment {
    let block: *const Attachment;
    // SAFETY: an address relative to here, as the stubs have it: the symbol is protected.
    unsafe {
        asm!("lea {}, [rip + {}]", out(reg) block, sym hound_attachment, options(pure, nomem, nostack, preserves_flags));
    }
    // SAFETY: the static's address.
    unsafe { &*block }
}

/// Whether hound has mapped the library itself.
#[inline(always)]
pub fn is_mapped() -> bool {
    hound_attachment.mapped.load(Ordering::Relaxed) != 0
}

/// The session whose ring, states and modules are in use.
static SESSION: AtomicU64 = AtomicU64::new(0);

/// As [`process::ready`], for a library that hound has mapped.
pub fn ready() -> bool {
    let attachment = attachment();
    if !is_target() {
        let mark = attachment.fork_mark.load(Ordering::Acquire) as *const AtomicU64;
        // SAFETY: null or a page that hound has mapped for this.
        return child(attachment, unsafe { mark.as_ref() });
    }
    follow_session(attachment);
    attachment.tid_offset.load(Ordering::Relaxed) != 0
}

/// Whether this is the process that the ring is for: not a child of its fork that has recorded nothing yet.
pub fn is_target() -> bool {
    let mark = attachment().fork_mark.load(Ordering::Acquire) as *const AtomicU64;
    // SAFETY: null or a page that hound has mapped for this.
    unsafe { mark.as_ref() }.is_some_and(|mark| mark.load(Ordering::Acquire) == TARGET)
}

/// What a fork's mark says: this is the target; a thread of this child asks for a ring just now, or has got none. A fork wipes it.
const TARGET: u64 = 1;
const ASKED: u64 = 2;

/// The child of a fork, at its first event: it gets a ring of its own, if children are recorded, or runs on unrecorded.
#[cold]
#[inline(never)]
fn child(attachment: &Attachment, mark: Option<&AtomicU64>) -> bool {
    follow_session(attachment); // one that has begun since the parent's last event
    if let Some(mark) = mark.filter(|_| family::is_known()) {
        // Two of its threads, or one and its signal handler; or nobody has answered, which is not to be waited for again.
        if mark.compare_exchange(0, ASKED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        let parent = process::control();
        let pid = sys::getpid();
        if let Some(ring) = family::ring_of_child(pid, parent) {
            attachment.ring.store(&raw const *ring as u64, Ordering::Relaxed);
            process::use_ring(ring);
            thread::be_first(pid);
            mark.store(TARGET, Ordering::Release);
            ring.library.store(LIBRARY_READY, Ordering::Release); // pairs with hound's acquire load
            process::tell_modules();
            return true;
        }
        process::count_unrecorded();
    }
    // The stubs look no further than here.
    attachment.ring.store(process::no_ring() as u64, Ordering::Relaxed);
    process::use_ring(process::no_ring());
    false
}

fn follow_session(attachment: &Attachment) {
    let session = attachment.session.load(Ordering::Acquire); // pairs with hound's raising of it, after all else
    if SESSION.load(Ordering::Acquire) != session {
        begin_session(attachment);
        SESSION.store(session, Ordering::Release);
    }
}

/// Takes over what hound has prepared, and forgets what was known of modules: nothing was seen of them while nothing was patched.
#[cold]
fn begin_session(attachment: &Attachment) {
    attachment.own_piece_count.store(OWN_PIECES as u64, Ordering::Relaxed);
    attachment.own_pieces.store(own::pieces(), Ordering::Release);
    samples::use_reserved(attachment.samples.load(Ordering::Relaxed));
    process::use_ring(attachment.ring.load(Ordering::Relaxed) as *const Control);
    process::use_loader(attachment.loader_start.load(Ordering::Relaxed), attachment.loader_end.load(Ordering::Relaxed));
    thread::use_reserved(attachment.states.load(Ordering::Relaxed), attachment.tid_offset.load(Ordering::Relaxed));
    elf::use_executable_headers(
        attachment.executable_headers.load(Ordering::Relaxed),
        attachment.executable_header_count.load(Ordering::Relaxed),
    );
    let control = process::control();
    let monotonic = control.clock.load(Ordering::Relaxed) == CLOCK_MONOTONIC;
    let clock_gettime = attachment.clock_gettime.load(Ordering::Relaxed);
    clock::use_function(if monotonic { clock_gettime } else { 0 });
    family::use_entries(attachment.family.load(Ordering::Relaxed) as *const Entries);
    modules::forget_all();
    rows::forget(0, u64::MAX);
    if attachment.tid_offset.load(Ordering::Relaxed) == 0 || (monotonic && clock_gettime == 0) {
        process::bow_out(OUT_NOT_PREPARED);
    } else {
        let _ = control.library.compare_exchange(LIBRARY_ABSENT, LIBRARY_READY, Ordering::Release, Ordering::Relaxed);
    }
}

/// A patched function, and the state of the thread that is in it (null where that is not known yet). `POOL`: its blocks are a pool's.
///
/// Who makes one has found out that the call is not the allocator's own ([`calls_itself`]): it is not asked again.
#[derive(Clone, Copy)]
pub struct Patched<const POOL: bool> {
    /// What hound wrote about it.
    pub entry: &'static Entry,
    /// The state.
    pub state: *mut Thread,
}

/// Whether a call from `ra` is the allocator calling itself.
#[inline(always)]
pub fn calls_itself(entry: &Entry, ra: u64) -> bool {
    ra >= entry.inside_start.load(Ordering::Relaxed) && ra < entry.inside_end.load(Ordering::Relaxed)
}

impl<const POOL: bool> Function for Patched<POOL> {
    #[inline(always)]
    fn kind(self) -> u8 {
        self.entry.kind
    }

    #[inline(always)]
    fn pool(self) -> u8 {
        if POOL { self.entry.pool } else { 0 }
    }

    #[inline(always)]
    fn is_inside(self, _caller: Caller) -> bool {
        false
    }

    #[inline(always)]
    fn usable(self, addr: u64) -> Option<(u64, u8)> {
        if !POOL && self.entry.flags & ENTRY_GLIBC != 0 {
            return Some(usual::chunk(addr));
        }
        // The helper of an `operator new` is another one, and a pool's blocks are no allocator's.
        if POOL || self.entry.shape == Shape::New as u8 {
            return None;
        }
        let helper = self.entry.helper.load(Ordering::Relaxed) as *mut ();
        if helper.is_null() {
            return None;
        }
        // SAFETY: hound's word that this is `malloc_usable_size` of the same allocator.
        let usable_size = unsafe { core::mem::transmute::<*mut (), extern "C" fn(u64) -> u64>(helper) };
        Some((usable_size(addr), 0))
    }

    #[inline(always)]
    fn thread(self) -> *mut Thread {
        // If the session has changed, or a fork has wiped the state, while the real function ran, then the state says another
        // `Control::state` than there is: `record::unusual` looks for the right one.
        if self.state.is_null() { directory::find() } else { self.state }
    }
}
