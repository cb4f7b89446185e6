//! What the stubs do: call the function that was patched, and record it.
//!
//! One body for each `Shape`. The functions called here are the ones behind the patches, as hound has left them in the entries: nothing is
//! looked up, and no lock is held while they run.

use core::ffi::c_void;
use core::sync::atomic::Ordering;

use hound_common::attach::{ENTRY_FREES, ENTRY_GLIBC, Entry, NO_ARGUMENT};
use hound_common::event::{ALLOC_MMAPPED, PROCESS_EXEC, tag};

use crate::attached::{self, Patched};
use crate::nesting::{self, Call, Entered};
use crate::record::{self, Caller};
use crate::{clock, directory, modules, process, rows, stack, sys};

/// Marks a call of a function of the heap as at work: `Some` call to record when the real function has returned. Where another one is at
/// work on another stack, the body returns what `$again` does, the same body with the same arguments.
macro_rules! enter {
    ($entry:expr, $caller:expr, $again:expr) => {
        match Call::<false>::enter($entry, $caller) {
            Entered::Outermost(call) => Some(call),
            Entered::Nested => None,
            // SAFETY: the caller's own call, begun anew.
            Entered::Elsewhere => return nesting::elsewhere::<false, _>(move || unsafe { $again }),
        }
    };
}

/// What a stub saves of a call whose arguments do not all fit the registers of a body's.
#[repr(C, align(16))]
pub struct Frame {
    /// Arguments in general registers.
    pub args: [u64; 6],
    /// The entry.
    pub entry: &'static Entry,
    /// Where the return address lies.
    pub slot: u64,
    /// bp at the call.
    pub bp: u64,
    /// ax: how many vector registers a variadic call uses.
    pub ax: u64,
}

impl Frame {
    /// From where.
    pub fn caller(&self) -> Caller {
        Caller { slot: self.slot, bp: self.bp }
    }

    /// The argument at `index`, 0 where there is none.
    pub fn argument(&self, index: u8) -> u64 {
        self.args.get(usize::from(index)).copied().unwrap_or(0)
    }
}

/// The patched function as if it were not patched.
///
/// # Safety
/// `F` must be its type.
#[inline(always)]
unsafe fn real<F: Copy>(entry: &Entry) -> F {
    let address = entry.real.load(Ordering::Relaxed);
    const { assert!(size_of::<F>() == size_of::<u64>()) };
    // SAFETY: a function pointer is its address; the type is the caller's promise.
    unsafe { core::mem::transmute_copy::<u64, F>(&address) }
}

/// A body for a function that returns a block.
macro_rules! alloc_body {
    ($(#[$doc:meta])* $name:ident($($arg:ident),*), $size:expr) => {
        $(#[$doc])*
        pub unsafe extern "C" fn $name($($arg: usize,)* entry: &'static Entry, slot: u64, bp: u64) -> *mut c_void {
            // SAFETY: hound gives a shape only to functions of its type; more arguments than a function takes do no harm.
            let real = unsafe { real::<unsafe extern "C" fn($(alloc_body!(@type $arg)),*) -> *mut c_void>(entry) };
            let Some(call) = enter!(entry, Caller { slot, bp }, $name($($arg,)* entry, slot, bp)) else {
                // SAFETY: the caller's own call, passed on.
                return unsafe { real($($arg),*) };
            };
            rows::prefetch(call.caller.ra());
            // SAFETY: the caller's own call, passed on.
            let block = unsafe { real($($arg),*) };
            call.leave();
            allocated(&call, block, $size);
            block
        }
    };
    (@type $arg:ident) => { usize };
}

/// Records a block that an outermost call has returned.
#[inline(always)]
pub fn allocated<const POOL: bool>(call: &Call<POOL>, block: *mut c_void, size: usize) {
    nesting::recorded(call.function);
    record::alloc(call.caller, call.function, block, size);
}

alloc_body!(/** `Shape::Alloc` */ alloc(size), size);
alloc_body!(/** `Shape::Calloc` */ calloc(count, size), count.wrapping_mul(size));
alloc_body!(/** `Shape::Memalign` */ memalign(align, size), size);
alloc_body!(/** `Shape::AllocFirst` */ alloc_first(size, align, more), size);

/// `Shape::PosixMemalign`
pub unsafe extern "C" fn posix_memalign(
    out: *mut *mut c_void,
    align: usize,
    size: usize,
    entry: &'static Entry,
    slot: u64,
    bp: u64,
) -> i32 {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> i32>(entry) };
    let call = enter!(entry, Caller { slot, bp }, posix_memalign(out, align, size, entry, slot, bp));
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(out, align, size) };
    if let Some(call) = call {
        call.leave();
        if result == 0 {
            // SAFETY: on success the real function has stored the block there.
            allocated(&call, unsafe { out.read() }, size);
        }
    }
    result
}

/// `Shape::Realloc`
pub unsafe extern "C" fn realloc(old: *mut c_void, size: usize, entry: &'static Entry, slot: u64, bp: u64) -> *mut c_void {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void>(entry) };
    let call = enter!(entry, Caller { slot, bp }, realloc(old, size, entry, slot, bp));
    let before = clock::now();
    // SAFETY: the caller's own call, passed on.
    let new = unsafe { real(old, size) };
    if let Some(call) = call {
        call.leave();
        resized(&call, before, old, new, size, true);
    }
    new
}

/// `Shape::Reallocarray`
pub unsafe extern "C" fn reallocarray(
    old: *mut c_void,
    count: usize,
    size: usize,
    entry: &'static Entry,
    slot: u64,
    bp: u64,
) -> *mut c_void {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void>(entry) };
    let call = enter!(entry, Caller { slot, bp }, reallocarray(old, count, size, entry, slot, bp));
    let before = clock::now();
    // SAFETY: the caller's own call, passed on.
    let new = unsafe { real(old, count, size) };
    if let Some(call) = call {
        call.leave();
        if let Some(total) = count.checked_mul(size) {
            resized(&call, before, old, new, total, true);
        }
    }
    new
}

/// `Shape::Rallocx`
pub unsafe extern "C" fn rallocx(old: *mut c_void, size: usize, flags: usize, entry: &'static Entry, slot: u64, bp: u64) -> *mut c_void {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void>(entry) };
    let call = enter!(entry, Caller { slot, bp }, rallocx(old, size, flags, entry, slot, bp));
    let before = clock::now();
    // SAFETY: the caller's own call, passed on.
    let new = unsafe { real(old, size, flags) };
    if let Some(call) = call {
        call.leave();
        resized(&call, before, old, new, size, false);
    }
    new
}

/// A resize returned: with a block, or without one because it failed (nothing happened, mostly) or, where that is its way, because size 0
/// released the old one.
#[inline(always)]
pub fn resized<const POOL: bool>(call: &Call<POOL>, before: u64, old: *mut c_void, new: *mut c_void, size: usize, zero_releases: bool) {
    let gives_up = call.function.entry.flags & ENTRY_FREES != 0;
    let released = new.is_null() && !old.is_null() && (zero_releases && size == 0 || gives_up);
    if !new.is_null() || released {
        nesting::recorded(call.function);
        record::realloc(call.caller, call.function, before, old, new, if released { 0 } else { size });
    }
}

/// `Shape::Reallocarr`
pub unsafe extern "C" fn reallocarr(place: *mut *mut c_void, count: usize, size: usize, entry: &'static Entry, slot: u64, bp: u64) -> i32 {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> i32>(entry) };
    let call = enter!(entry, Caller { slot, bp }, reallocarr(place, count, size, entry, slot, bp));
    let before = clock::now();
    // SAFETY: the function reads it first thing, unless it is null.
    let old = if place.is_null() { core::ptr::null_mut() } else { unsafe { place.read() } };
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(place, count, size) };
    if let Some(call) = call {
        call.leave();
        if result == 0 {
            // SAFETY: it has succeeded, so the place is one.
            let new = unsafe { place.read() };
            resized(&call, before, old, new, count.wrapping_mul(size), true);
        }
    }
    result
}

/// A function of six arguments at most.
type Six = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64;

/// The caller's own call, passed on.
///
/// # Safety
/// The entry's function must take integers only, six at most.
#[inline(always)]
unsafe fn pass_on(frame: &Frame) -> u64 {
    let [a, b, c, d, e, f] = frame.args;
    // SAFETY: the caller's promise; more arguments than a function takes do no harm.
    let real = unsafe { real::<Six>(frame.entry) };
    // SAFETY: the caller's own call.
    unsafe { real(a, b, c, d, e, f) }
}

/// `Shape::Wide`
pub unsafe extern "C" fn wide(frame: &Frame) -> u64 {
    let call = enter!(frame.entry, frame.caller(), wide(frame));
    // SAFETY: hound gives this shape only to such functions.
    let block = unsafe { pass_on(frame) };
    if let Some(call) = call {
        call.leave();
        allocated(&call, block as *mut c_void, placed_size(frame));
    }
    block
}

/// `Shape::WideRealloc`
pub unsafe extern "C" fn wide_realloc(frame: &Frame) -> u64 {
    let call = enter!(frame.entry, frame.caller(), wide_realloc(frame));
    let before = clock::now();
    // SAFETY: as in `wide`.
    let new = unsafe { pass_on(frame) };
    if let Some(call) = call {
        call.leave();
        let old = frame.argument(frame.entry.block_argument) as *mut c_void;
        resized(&call, before, old, new as *mut c_void, placed_size(frame), true);
    }
    new
}

/// `Shape::Text`
pub unsafe extern "C" fn text(frame: &Frame) -> u64 {
    let call = enter!(frame.entry, frame.caller(), text(frame));
    // SAFETY: as in `wide`.
    let block = unsafe { pass_on(frame) };
    if let Some(call) = call {
        call.leave();
        // One that was given a place for the text returns that.
        if block != 0 && frame.argument(frame.entry.block_argument) == 0 {
            // SAFETY: the function has just made a text that ends with a zero.
            let length = unsafe { core::ffi::CStr::from_ptr(block as *const core::ffi::c_char) }.count_bytes();
            allocated(&call, block as *mut c_void, length + 1);
        }
    }
    block
}

/// `Shape::Xallocx`: the block stays where it is; less than asked for means that nothing was done.
pub unsafe extern "C" fn xallocx(frame: &Frame) -> u64 {
    let [block, size, extra, flags, ..] = frame.args;
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(u64, u64, u64, u64) -> u64>(frame.entry) };
    let call = enter!(frame.entry, frame.caller(), xallocx(frame));
    let before = clock::now();
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(block, size, extra, flags) };
    if let Some(call) = call {
        call.leave();
        if result >= size {
            let block = block as *mut c_void;
            resized(&call, before, block, block, size as usize, false);
        }
    }
    result
}

/// `Shape::Free`: such functions take a size, an alignment or flags beside the block.
///
/// The real function's call is the last thing done, which the compiler makes a jump: no frame of ours is on the stack meanwhile. Only where
/// releasing the block unmaps memory there is one: other threads are told when it is gone.
pub unsafe extern "C" fn free(block: u64, second: u64, third: u64, entry: &'static Entry, slot: u64, bp: u64) {
    if block != 0 {
        release::<false>(entry, Caller { slot, bp }, block);
        if entry.flags & ENTRY_GLIBC != 0 && record::chunk(block).1 & ALLOC_MMAPPED != 0 {
            // SAFETY: as in `alloc_body`.
            let real = unsafe { real::<Releasing>(entry) };
            // SAFETY: the caller's own call, passed on.
            unsafe { real(block, second, third) };
            stack::note_unmapping();
            return;
        }
    }
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<Releasing>(entry) };
    // SAFETY: the caller's own call, passed on.
    unsafe { real(block, second, third) }
}

/// A function that releases a block.
type Releasing = unsafe extern "C" fn(u64, u64, u64);

/// Records the release of a block, unless it is nested.
#[inline(always)]
pub fn release<const POOL: bool>(entry: &'static Entry, caller: Caller, block: u64) {
    let Some(function) = nesting::outermost::<POOL>(entry, caller.ra()) else { return };
    if nesting::releases(function, caller, block) {
        record::free(caller, function, block as *mut c_void);
        nesting::released(function, caller, block);
    }
}

/// `Shape::New`. The block, or null: then the function itself is to be jumped to.
pub unsafe extern "C" fn new(frame: &Frame) -> *mut c_void {
    static NOTHROW: u64 = 0;
    let helper = frame.entry.helper.load(Ordering::Relaxed);
    if helper == 0 {
        return core::ptr::null_mut();
    }
    let Some(call) = enter!(frame.entry, frame.caller(), new(frame)) else { return core::ptr::null_mut() };
    let [first, second, third, ..] = frame.args;
    let placed = frame.entry.size_argument != NO_ARGUMENT;
    let third = if placed { third } else { &raw const NOTHROW as u64 };
    // SAFETY: hound's word that this is `operator new(size, nothrow)` or `operator new(size, align, nothrow)`, or takes the very arguments.
    // In the first one's case the nothrow is what stands in the second argument: an empty object that nobody reads.
    let helper = unsafe { core::mem::transmute::<u64, unsafe extern "C" fn(u64, u64, u64) -> *mut c_void>(helper) };
    let before = clock::now();
    // SAFETY: does what the caller's own call would.
    let block = unsafe { helper(first, second, third) };
    call.leave();
    let size = if placed { placed_size(frame) } else { first as usize };
    if frame.entry.block_argument == NO_ARGUMENT {
        allocated(&call, block, size);
    } else {
        resized(&call, before, frame.argument(frame.entry.block_argument) as *mut c_void, block, size, false);
    }
    block
}

const FAILED: u64 = u64::MAX;

/// Whether the program changes its mappings, not libc for itself (for the heap, whose blocks are told one by one, or a thread's stack).
fn is_programs(entry: &'static Entry, caller: Caller) -> bool {
    !attached::calls_itself(entry, caller.ra()) && !nesting::is_in_heap(caller)
}

/// `Shape::Mmap`
pub unsafe extern "C" fn mmap(frame: &Frame) -> u64 {
    let [addr, length, prot, flags, fd, offset] = frame.args;
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64>(frame.entry) };
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(addr, length, prot, flags, fd, offset) };
    if result != FAILED && is_programs(frame.entry, frame.caller()) {
        let protection = u64::from(prot as u32) | u64::from(flags as u32) << 32;
        let words = [result, length, protection, i64::from(fd as i32) as u64, offset];
        record::map(frame.caller(), tag::MAP, of(frame), clock::now(), &words);
    }
    result
}

/// `Shape::Mremap`
pub unsafe extern "C" fn mremap(frame: &Frame) -> u64 {
    let [old, old_length, length, flags, new, unused] = frame.args;
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(u64, u64, u64, u64, u64, u64) -> u64>(frame.entry) };
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(old, old_length, length, flags, new, unused) };
    stack::note_unmapping();
    if result != FAILED && is_programs(frame.entry, frame.caller()) {
        let words = [old, old_length, result, length, u64::from(flags as u32)];
        record::map(frame.caller(), tag::REMAP, of(frame), clock::now(), &words);
    }
    result
}

/// `Shape::Munmap`
pub unsafe extern "C" fn munmap(addr: u64, length: u64, entry: &'static Entry, slot: u64, bp: u64) -> i32 {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(u64, u64) -> i32>(entry) };
    let mut state = directory::find();
    if state.is_null() {
        state = record::make_state().unwrap_or(state); // the session's clock is known from here on
    }
    let before = clock::now();
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(addr, length) };
    stack::note_unmapping();
    let function = Patched::<false> { entry, state };
    if result == 0 && is_programs(entry, Caller { slot, bp }) {
        record::map(Caller { slot, bp }, tag::UNMAP, function, before, &[addr, length]);
    }
    result
}

fn of(frame: &Frame) -> Patched<false> {
    Patched { entry: frame.entry, state: core::ptr::null_mut() }
}

/// `Shape::Exec`: a child of vfork runs in this memory but is another process, whose exec is none of ours.
pub extern "C" fn exec(frame: &Frame) {
    if process::ready() && process::control().target_pid.load(Ordering::Relaxed) == sys::getpid() {
        record::process(frame.caller(), of(frame), tag::PROCESS, PROCESS_EXEC, clock::now());
    }
}

/// The size, as the entry says where it is.
pub fn placed_size(frame: &Frame) -> usize {
    let count = if frame.entry.count_argument == NO_ARGUMENT { 1 } else { frame.argument(frame.entry.count_argument) };
    frame.argument(frame.entry.size_argument).wrapping_mul(count) as usize
}

/// `Shape::RegisterFrame`
pub extern "C" fn register_frame(table: u64) {
    modules::register_frames(table);
}

/// `Shape::DeregisterFrame`
pub extern "C" fn deregister_frame(table: u64) {
    modules::deregister_frames(table);
}
