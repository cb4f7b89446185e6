//! What the stubs do: call the function that was patched, and record it.
//!
//! One body for each `Shape`. The functions called here are the ones behind the patches, as hound has left them in the entries: nothing is
//! looked up, and no lock is held while they run.

use core::ffi::{c_char, c_void};
use core::sync::atomic::Ordering;

use hound_common::attach::{ENTRY_FREES, ENTRY_GLIBC, Entry, NO_ARGUMENT};
use hound_common::event::{ALLOC_MMAPPED, PROCESS_EXEC, tag};
use hound_common::ring::{LIBRARY_OUT, STATE_RECORDING};

use crate::attached::{self, Patched};
use crate::image::File;
use crate::nesting::{self, Call, Entered};
use crate::record::{self, Caller, Draw, Function, Resize};
use crate::{clock, directory, family, filters, modules, process, rows, stack, sys, usual};

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
        #[inline(never)]
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
    let draw = record::draw(call.function.state, size);
    record::alloc(call.caller, call.function, block, size, draw);
}

/// What a stub goes to where the countdown has come to its end: with the ring's state as it was then. As a body of `alloc_body`.
macro_rules! sampled_body {
    ($(#[$doc:meta])* $name:ident($($arg:ident),*), $size:expr) => {
        $(#[$doc])*
        #[cold]
        pub unsafe extern "C" fn $name(
            first: usize,
            second: usize,
            third: usize,
            entry: &'static Entry,
            slot: u64,
            bp: u64,
            state: u64,
        ) -> *mut c_void {
            let _ = (first, second, third);
            let [$($arg),*] = sampled_body!(@those first, second, third, $($arg),*);
            // SAFETY: as in `alloc_body`.
            let real = unsafe { real::<unsafe extern "C" fn($(alloc_body!(@type $arg)),*) -> *mut c_void>(entry) };
            let Some(call) = enter!(entry, Caller { slot, bp }, $name(first, second, third, entry, slot, bp, state)) else {
                // SAFETY: the caller's own call, passed on.
                return unsafe { real($($arg),*) };
            };
            let draw = record::reached(call.function.state, $size, state);
            // SAFETY: the caller's own call, passed on.
            let block = unsafe { real($($arg),*) };
            call.leave();
            nesting::recorded(call.function);
            record::alloc(call.caller, call.function, block, $size, draw);
            block
        }
    };
    (@those $first:ident, $second:ident, $third:ident, $a:ident) => { [$first] };
    (@those $first:ident, $second:ident, $third:ident, $a:ident, $b:ident) => { [$first, $second] };
    (@those $first:ident, $second:ident, $third:ident, $a:ident, $b:ident, $c:ident) => { [$first, $second, $third] };
}

alloc_body!(/** `Shape::Alloc` */ alloc(size), size);
alloc_body!(/** `Shape::Calloc` */ calloc(count, size), count.wrapping_mul(size));
alloc_body!(/** `Shape::Memalign` */ memalign(align, size), size);
alloc_body!(/** `Shape::AllocFirst` */ alloc_first(size, align, more), size);
sampled_body!(/** As [`alloc`] */ alloc_sampled(size), size);
sampled_body!(/** As [`calloc`] */ calloc_sampled(count, size), count.wrapping_mul(size));
sampled_body!(/** As [`memalign`] */ memalign_sampled(align, size), size);
sampled_body!(/** As [`alloc_first`] */ alloc_first_sampled(size, align, more), size);

/// In the place of a state of the ring's, none of which has this value: nothing is drawn yet.
const UNDRAWN: u64 = 0;

/// What is drawn for a block of an outermost call: now, or when the ring's state was this.
#[inline(always)]
fn drawn<const POOL: bool>(call: &Call<POOL>, size: usize, state: u64) -> Draw {
    match state {
        UNDRAWN => record::draw(call.function.state, size),
        state => record::reached(call.function.state, size, state),
    }
}

/// Both bodies of a function that is no plain allocation: `$body`, and `$sampled` as those of `sampled_body`. `$both` does the work, with the
/// ring's state or [`UNDRAWN`].
macro_rules! both_bodies {
    ($(#[$doc:meta])* $body:ident, $sampled:ident => $both:ident($($arg:ident: $type:ty),*) -> $result:ty) => {
        $(#[$doc])*
        pub unsafe extern "C" fn $body($($arg: $type,)* entry: &'static Entry, slot: u64, bp: u64) -> $result {
            // SAFETY: the caller's own call.
            unsafe { $both($($arg,)* entry, slot, bp, UNDRAWN) }
        }

        both_bodies!(@sampled $body, $sampled => $both($($arg: $type),*) -> $result);
    };
    (@sampled $body:ident, $sampled:ident => $both:ident($a:ident: $first:ty, $b:ident: $second:ty) -> $result:ty) => {
        #[doc = concat!("As [`", stringify!($body), "`]")]
        #[cold]
        pub unsafe extern "C" fn $sampled(
            $a: $first, $b: $second, _: usize, entry: &'static Entry, slot: u64, bp: u64, state: u64,
        ) -> $result {
            // SAFETY: the caller's own call.
            unsafe { $both($a, $b, entry, slot, bp, state) }
        }
    };
    (@sampled $body:ident, $sampled:ident => $both:ident($($arg:ident: $type:ty),*) -> $result:ty) => {
        #[doc = concat!("As [`", stringify!($body), "`]")]
        #[cold]
        pub unsafe extern "C" fn $sampled($($arg: $type,)* entry: &'static Entry, slot: u64, bp: u64, state: u64) -> $result {
            // SAFETY: the caller's own call.
            unsafe { $both($($arg,)* entry, slot, bp, state) }
        }
    };
}

both_bodies!(/** `Shape::PosixMemalign` */ posix_memalign, posix_memalign_sampled =>
    posix_memalign_drawn(out: *mut *mut c_void, align: usize, size: usize) -> i32);
both_bodies!(/** `Shape::Realloc` */ realloc, realloc_sampled => realloc_drawn(old: *mut c_void, size: usize) -> *mut c_void);
both_bodies!(/** `Shape::Reallocarray` */ reallocarray, reallocarray_sampled =>
    reallocarray_drawn(old: *mut c_void, count: usize, size: usize) -> *mut c_void);
both_bodies!(/** `Shape::Rallocx` */ rallocx, rallocx_sampled =>
    rallocx_drawn(old: *mut c_void, size: usize, flags: usize) -> *mut c_void);

#[inline(always)]
unsafe extern "C" fn posix_memalign_drawn(
    out: *mut *mut c_void,
    align: usize,
    size: usize,
    entry: &'static Entry,
    slot: u64,
    bp: u64,
    state: u64,
) -> i32 {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> i32>(entry) };
    let Some(call) = enter!(entry, Caller { slot, bp }, posix_memalign_drawn(out, align, size, entry, slot, bp, state)) else {
        // SAFETY: the caller's own call, passed on.
        return unsafe { real(out, align, size) };
    };
    let draw = drawn(&call, size, state);
    // SAFETY: as above.
    let result = unsafe { real(out, align, size) };
    call.leave();
    if result == 0 {
        nesting::recorded(call.function);
        // SAFETY: on success the real function has stored the block there.
        record::alloc(call.caller, call.function, unsafe { out.read() }, size, draw);
    }
    result
}

#[inline(always)]
unsafe extern "C" fn realloc_drawn(old: *mut c_void, size: usize, entry: &'static Entry, slot: u64, bp: u64, state: u64) -> *mut c_void {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void>(entry) };
    let call = enter!(entry, Caller { slot, bp }, realloc_drawn(old, size, entry, slot, bp, state));
    let resize = resizing_drawn(&call, old, size, state);
    // SAFETY: the caller's own call, passed on.
    let new = unsafe { real(old, size) };
    if let (Some(call), Some(resize)) = (call, resize) {
        call.leave();
        resized(&call, resize, old, new, size, true);
    }
    new
}

#[inline(always)]
unsafe extern "C" fn reallocarray_drawn(
    old: *mut c_void,
    count: usize,
    size: usize,
    entry: &'static Entry,
    slot: u64,
    bp: u64,
    state: u64,
) -> *mut c_void {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void>(entry) };
    let call = enter!(entry, Caller { slot, bp }, reallocarray_drawn(old, count, size, entry, slot, bp, state));
    // Where that overflows, it fails.
    let total = count.checked_mul(size);
    let resize = resizing_drawn(&call, old, total.unwrap_or(1), state);
    // SAFETY: the caller's own call, passed on.
    let new = unsafe { real(old, count, size) };
    if let (Some(call), Some(resize)) = (call, resize) {
        call.leave();
        match total {
            Some(total) => resized(&call, resize, old, new, total, true),
            None => resize.failed(),
        }
    }
    new
}

#[inline(always)]
unsafe extern "C" fn rallocx_drawn(
    old: *mut c_void,
    size: usize,
    flags: usize,
    entry: &'static Entry,
    slot: u64,
    bp: u64,
    state: u64,
) -> *mut c_void {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void>(entry) };
    let call = enter!(entry, Caller { slot, bp }, rallocx_drawn(old, size, flags, entry, slot, bp, state));
    let resize = resizing_drawn(&call, old, size, state);
    // SAFETY: the caller's own call, passed on.
    let new = unsafe { real(old, size, flags) };
    if let (Some(call), Some(resize)) = (call, resize) {
        call.leave();
        resized(&call, resize, old, new, size, false);
    }
    new
}

/// A resize returned: with a block, or without one because it failed (nothing happened, mostly) or, where that is its way, because size 0
/// released the old one.
#[inline(always)]
pub fn resized<const POOL: bool>(call: &Call<POOL>, resize: Resize, old: *mut c_void, new: *mut c_void, size: usize, zero_releases: bool) {
    let gives_up = call.function.entry.flags & ENTRY_FREES != 0;
    let released = new.is_null() && !old.is_null() && (zero_releases && size == 0 || gives_up);
    if !new.is_null() || released {
        nesting::recorded(call.function);
        record::realloc(call.caller, call.function, resize, old, new, if released { 0 } else { size });
    } else {
        resize.failed();
    }
}

/// An outermost call that is to be recorded is about to resize a block.
#[inline(always)]
pub fn resizing<const POOL: bool>(call: &Option<Call<POOL>>, old: *mut c_void, size: usize) -> Option<Resize> {
    resizing_drawn(call, old, size, UNDRAWN)
}

/// As [`resizing`], with the ring's state when the countdown came to its end, or [`UNDRAWN`].
#[inline(always)]
fn resizing_drawn<const POOL: bool>(call: &Option<Call<POOL>>, old: *mut c_void, size: usize, state: u64) -> Option<Resize> {
    let call = call.as_ref()?;
    Some(Resize::begin(drawn(call, size, state), old, call.function.pool()))
}

/// `Shape::Reallocarr`
pub unsafe extern "C" fn reallocarr(place: *mut *mut c_void, count: usize, size: usize, entry: &'static Entry, slot: u64, bp: u64) -> i32 {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> i32>(entry) };
    let call = enter!(entry, Caller { slot, bp }, reallocarr(place, count, size, entry, slot, bp));
    // SAFETY: the function reads it first thing, unless it is null.
    let old = if place.is_null() { core::ptr::null_mut() } else { unsafe { place.read() } };
    let resize = resizing(&call, old, count.wrapping_mul(size));
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(place, count, size) };
    if let (Some(call), Some(resize)) = (call, resize) {
        call.leave();
        if result == 0 {
            // SAFETY: it has succeeded, so the place is one.
            let new = unsafe { place.read() };
            resized(&call, resize, old, new, count.wrapping_mul(size), true);
        } else {
            resize.failed();
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
    let old = frame.argument(frame.entry.block_argument) as *mut c_void;
    let resize = resizing(&call, old, placed_size(frame));
    // SAFETY: as in `wide`.
    let new = unsafe { pass_on(frame) };
    if let (Some(call), Some(resize)) = (call, resize) {
        call.leave();
        resized(&call, resize, old, new as *mut c_void, placed_size(frame), true);
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
            let length = unsafe { core::ffi::CStr::from_ptr(block as *const c_char) }.count_bytes();
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
    let resize = resizing(&call, block as *mut c_void, size as usize);
    // SAFETY: the caller's own call, passed on.
    let result = unsafe { real(block, size, extra, flags) };
    if let (Some(call), Some(resize)) = (call, resize) {
        call.leave();
        if result >= size {
            let block = block as *mut c_void;
            resized(&call, resize, block, block, size as usize, false);
        } else {
            resize.failed();
        }
    }
    result
}

/// `Shape::Free`: such functions take a size, an alignment or flags beside the block.
///
/// The real function's call is the last thing done, which the compiler makes a jump: no frame of ours is on the stack meanwhile. Only where
/// releasing the block unmaps memory there is one: other threads are told when it is gone.
pub unsafe extern "C" fn free(block: u64, second: u64, third: u64, entry: &'static Entry, slot: u64, bp: u64) {
    if record::is_passed_over(Caller { slot, bp }, block) {
        // SAFETY: as in `alloc_body`.
        let real = unsafe { real::<Releasing>(entry) };
        // SAFETY: the caller's own call, passed on.
        unsafe { real(block, second, third) }
    } else {
        // SAFETY: as above.
        unsafe { free_recorded(block, second, third, entry, slot, bp) }
    }
}

/// As [`free`], where the block is of interest.
#[inline(never)]
unsafe extern "C" fn free_recorded(block: u64, second: u64, third: u64, entry: &'static Entry, slot: u64, bp: u64) {
    if block != 0 {
        release::<false>(entry, Caller { slot, bp }, block);
        if entry.flags & ENTRY_GLIBC != 0 && usual::chunk(block).1 & ALLOC_MMAPPED != 0 {
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
    let size = if placed { placed_size(frame) } else { first as usize };
    let resizes = frame.entry.block_argument != NO_ARGUMENT;
    let old = if resizes { frame.argument(frame.entry.block_argument) as *mut c_void } else { core::ptr::null_mut() };
    let resize = resizes.then(|| Resize::begin(record::draw(call.function.state, size), old, call.function.pool()));
    // SAFETY: does what the caller's own call would.
    let block = unsafe { helper(first, second, third) };
    call.leave();
    match resize {
        None => allocated(&call, block, size),
        Some(resize) => resized(&call, resize, old, block, size, false),
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

/// `Shape::Exec`: a child of vfork runs in this memory but is another process, whose exec is none of ours. The child of a fork that has
/// recorded nothing so far does not begin with this. The entry says where the environment is, if it is an argument.
pub extern "C" fn exec(frame: &mut Frame) {
    // As in `fork`.
    let is_target = attached::is_target() && process::ready();
    let control = process::control();
    let is_recorded = is_target && control.state.load(Ordering::Relaxed) & STATE_RECORDING != 0;
    if is_recorded && control.target_pid.load(Ordering::Relaxed) == sys::getpid() {
        record::process(frame.caller(), of(frame), tag::PROCESS, PROCESS_EXEC, clock::now());
    }
    // Where the library is out there is nobody to be found.
    if !family::is_known() || control.library.load(Ordering::Relaxed) == LIBRARY_OUT {
        return;
    }
    // `execveat`, or `execve` and `fexecve`: of these one has a path first, the other a descriptor. The others of both C libraries come here.
    let [first, second, ..] = frame.args;
    let file = match (frame.entry.block_argument, first) {
        (NO_ARGUMENT, _) => return,
        (3, folder) => File::At(folder as i32, second as *const c_char),
        (_, descriptor @ 0..4096) => File::Descriptor(descriptor as i32),
        (_, path) => File::Path(path as *const c_char),
    };
    family::begins(file, false);
    if let Some(given) = frame.args.get_mut(usize::from(frame.entry.block_argument))
        && let Some(other) = family::environment_with_us(*given as *const *const c_char, false)
    {
        *given = other as u64;
    }
}

/// `Shape::Fork`
pub unsafe extern "C" fn fork(entry: &'static Entry, slot: u64, bp: u64) -> i32 {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn() -> i32>(entry) };
    // A session that began since the last event is taken over, for what it says of the family.
    let _ = attached::is_target() && process::ready();
    family::begin_fork(Caller { slot, bp }, Patched::<false> { entry, state: core::ptr::null_mut() });
    // SAFETY: the caller's own call, passed on.
    let child = unsafe { real() };
    family::end_fork(child);
    child
}

/// `Shape::Prctl`, called to forbid something.
pub extern "C" fn prctl(frame: &mut Frame) -> isize {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(u64, u64, u64, u64, u64) -> i32>(frame.entry) };
    let [option, a, b, c, d, _] = frame.args;
    // SAFETY: the caller's own call, passed on.
    filters::make(filters::by_prctl(option as usize, a as usize, b as usize), || unsafe { real(option, a, b, c, d) } as isize)
}

/// `Shape::Syscall`, likewise: no such call has more arguments than come in registers.
pub extern "C" fn syscall(frame: &mut Frame) -> isize {
    // SAFETY: as in `alloc_body`.
    let real = unsafe { real::<unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64) -> isize>(frame.entry) };
    let [number, a, b, c, d, e] = frame.args;
    let forbids = filters::by_syscall(number as usize, a as usize, b as usize, c as usize);
    // SAFETY: the caller's own call, passed on.
    filters::make(forbids, || unsafe { real(number, a, b, c, d, e, 0) })
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
