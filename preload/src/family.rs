//! Processes that a recorded program begins, where those are to be recorded too (`hound run --children`): each asks hound for a ring of its
//! own, at its first event. One that gets none runs on unrecorded.
//!
//! A program finds the way to hound in its environment, the child of a fork in the memory that it has from its parent.

use core::ffi::{CStr, c_char};
use core::mem::size_of;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use hound_common::attach::ENVIRONMENT_BYTES;
use hound_common::event::{PROCESS_FORKS, tag};
use hound_common::family::{
    self, EXECUTES, Entries, FORKED, GREETING_BYTES, Greeting, NAME_BYTES, PASSWORD_BYTES, PRELOAD_BYTES, PROGRAM, ROOM_ENTRIES, SPAWNS,
    UNRECORDED, VARIABLE, write,
};
use hound_common::ring::{self, Control};

use crate::record::{self, Caller, Function};
use crate::sys::{self, syscall};
use crate::{clock, filters, image, own, process};

const READ: usize = 0;
const SOCKET: usize = 41;
const CONNECT: usize = 42;
const SENDTO: usize = 44;
const RECVMSG: usize = 47;
const SETSOCKOPT: usize = 54;
const AF_UNIX: u16 = 1;
const EINTR: isize = -4;
/// hound answers in well under a millisecond; a program must not hang for one that was stopped.
const PATIENCE_SECONDS: u64 = 2;

/// `struct sockaddr_un`.
#[repr(C)]
struct Address {
    family: u16,
    path: [u8; 108],
}

/// Where hound is: the socket's name in words, its length, and the password. Written before there are threads.
static NAME: [AtomicU64; NAME_BYTES / 8] = [const { AtomicU64::new(0) }; NAME_BYTES / 8];
static NAME_LENGTH: AtomicUsize = AtomicUsize::new(0);
static PASSWORD: [AtomicU64; PASSWORD_BYTES / 8] = [const { AtomicU64::new(0) }; PASSWORD_BYTES / 8];

/// When the running `fork` was called, and by which thread (its thread pointer); 0 while none runs.
static FORK_TICKS: AtomicU64 = AtomicU64::new(0);
static FORK_THREAD: AtomicU64 = AtomicU64::new(0);

/// The entries that a program finds us by: kept apart, for programs write over the ones that they were given.
static ENTRIES: AtomicPtr<Entries> = AtomicPtr::new(core::ptr::null_mut());

/// The values of the two entries as the kernel has put them on the stack. Programs that write titles over them keep copies elsewhere.
static SHOWN_WAY: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static SHOWN_LIST: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// Takes the way to hound from the environment variable's value, and what the loader is to load with every program. Whether that is it.
pub fn learn(value: &[u8], preload: &[u8]) -> bool {
    if !find(value) {
        return false;
    }
    for (shown, given) in [(&SHOWN_WAY, value), (&SHOWN_LIST, preload)] {
        if !given.is_empty() {
            shown.store(given.as_ptr().cast_mut(), Ordering::Relaxed); // else there may be no such entry
        }
    }
    if let Some(memory) = sys::map_private(size_of::<Entries>(), false) {
        // SAFETY: just mapped, zero, as large as that.
        let entries = unsafe { &mut *memory.cast::<Entries>() };
        if write(&mut entries.family, &[VARIABLE.as_bytes(), b"=", value]) && write(&mut entries.preload, &[PRELOAD, preload]) {
            ENTRIES.store(memory.cast(), Ordering::Release);
        }
    }
    true
}

/// Takes the way to hound from what hound has put into the target's memory, which stays there; or forgets the one that was known.
pub fn use_entries(entries: *const Entries) {
    NAME_LENGTH.store(0, Ordering::Relaxed);
    ENTRIES.store(core::ptr::null_mut(), Ordering::Release);
    // SAFETY: null, or mapped by hound for this; not written to while a session is on.
    let Some(known) = (unsafe { entries.as_ref() }) else { return };
    let value = CStr::from_bytes_until_nul(&known.family).ok().and_then(|text| text.to_bytes().strip_prefix(VARIABLE.as_bytes()));
    // Without a library that the target can load, programs that it begins are not to look for one.
    if value.and_then(|value| value.strip_prefix(b"=")).is_some_and(find) && known.preload.first().is_some_and(|byte| *byte != 0) {
        ENTRIES.store(entries.cast_mut(), Ordering::Release);
    }
}

/// Where hound is, from the variable's value.
fn find(value: &[u8]) -> bool {
    let Some((name, password)) = family::parse(value) else { return false };
    for (word, bytes) in NAME.iter().zip(name.chunks(8)) {
        word.store(word_of(bytes), Ordering::Relaxed);
    }
    for (word, bytes) in PASSWORD.iter().zip(password.chunks(8)) {
        word.store(word_of(bytes), Ordering::Relaxed);
    }
    NAME_LENGTH.store(name.len(), Ordering::Release);
    true
}

const PRELOAD: &[u8] = b"LD_PRELOAD=";
const LIBRARY: &[u8] = b"libhound.so";
/// [`family::SANITIZER`], whole.
const SANITIZER: &[u8] = b"ASAN_OPTIONS=verify_asan_link_order=0\0";

/// Room for an environment. It stays a thread's own: after vfork nobody could tell when the child needs it no more, but that its parent runs again.
#[repr(C)]
struct Room {
    entries: [*const c_char; ROOM_ENTRIES],
    preload: [u8; 2 * PRELOAD_BYTES],
    sanitizer: [u8; PRELOAD_BYTES],
}

const _: () = assert!(size_of::<Room>() == ENVIRONMENT_BYTES);
const ROOMS: usize = 32;
/// By thread pointer.
static ROOM_OF: [AtomicU64; ROOMS] = [const { AtomicU64::new(0) }; ROOMS];
static ROOM: [AtomicPtr<Room>; ROOMS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; ROOMS];

/// `lasts`: what is put there becomes the process' own environment, and may be one for long (after a vfork, or an exec that fails): it is not
/// written over.
fn room(lasts: bool) -> Option<&'static mut Room> {
    if lasts {
        // SAFETY: just mapped, zero, as large as that.
        return own::map(size_of::<Room>()).and_then(|memory| unsafe { memory.cast::<Room>().as_mut() });
    }
    let thread = sys::thread_pointer();
    let own = ROOM_OF.iter().position(|of| of.load(Ordering::Relaxed) == thread);
    let free = || ROOM_OF.iter().position(|of| of.compare_exchange(0, thread, Ordering::AcqRel, Ordering::Relaxed).is_ok());
    let place = ROOM.get(own.or_else(free)?)?;
    if place.load(Ordering::Relaxed).is_null() {
        place.store(own::map(size_of::<Room>())?.cast(), Ordering::Relaxed);
    }
    // SAFETY: mapped, zero or written by this thread before, and used by no other.
    unsafe { place.load(Ordering::Relaxed).as_mut() }
}

/// A variable whose value is a list that must have something of ours in it.
struct List<'a> {
    /// With the equals sign.
    name: &'static [u8],
    /// What must be in it, to be recognised by.
    mark: &'static [u8],
    /// The whole entry, if there is none of theirs; ended by a zero byte.
    own: &'a [u8],
}

impl List<'_> {
    fn is_of(&self, entry: &[u8]) -> bool {
        entry.starts_with(self.name)
    }

    fn is_good(&self, entry: &[u8]) -> bool {
        self.is_of(entry) && entry.windows(self.mark.len()).any(|part| part == self.mark)
    }

    /// An entry with ours before what is in theirs; nothing if theirs is good as it is. `Err` where there is no room for it.
    fn entry<'a>(&'a self, theirs: Option<&[u8]>, room: &'a mut [u8]) -> Result<Option<*const c_char>, ()> {
        match theirs {
            Some(entry) if self.is_good(entry) => return Ok(None),
            None => return Ok(Some(self.own.as_ptr().cast())),
            Some(entry) if entry.len() == self.name.len() => return Ok(Some(self.own.as_ptr().cast())),
            Some(_) => {}
        }
        let own = CStr::from_bytes_until_nul(self.own).map_err(|_| ())?.to_bytes();
        let rest = theirs.and_then(|entry| entry.get(self.name.len()..)).unwrap_or_default();
        if write(room, &[own, b":", rest]) { Ok(Some(room.as_ptr().cast())) } else { Err(()) }
    }
}

/// The environment that a program is to be given so that it finds hound; `None` if it does so with what it is given, or cannot be helped (which
/// is counted). `lasts`: as of [`room`].
pub fn environment_with_us(given: *const *const c_char, lasts: bool) -> Option<*const *const c_char> {
    if filters::came() {
        return environment_without_us(given, lasts);
    }
    // SAFETY: mapped by `learn` or by hound, never unmapped while it is known.
    let ours = unsafe { ENTRIES.load(Ordering::Acquire).as_ref() }?;
    let entry = |index: usize| {
        if given.is_null() {
            return None;
        }
        // SAFETY: asked for in order, up to the null that ends an environment.
        let entry = unsafe { given.wrapping_add(index).read() };
        // SAFETY: a terminated string, as exec demands.
        (!entry.is_null()).then(|| (entry, unsafe { CStr::from_ptr(entry) }.to_bytes()))
    };
    let entries = || (0..).map_while(entry);
    let is_ours = |text: &[u8]| text.strip_prefix(VARIABLE.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
    let preload = List { name: PRELOAD, mark: LIBRARY, own: &ours.preload };
    let sanitizer = List { name: b"ASAN_OPTIONS=", mark: family::SANITIZER.1.as_bytes(), own: SANITIZER };
    let lists = [&preload, &sanitizer];
    if entries().any(|(_, text)| is_ours(text)) && lists.iter().all(|list| entries().any(|(_, text)| list.is_good(text))) {
        return None;
    }
    let made = room(lasts).and_then(|room| {
        if entries().count() + lists.len() + 2 > ROOM_ENTRIES {
            return None;
        }
        let mut at = 0;
        let mut put = |entry: *const c_char| {
            if let Some(place) = room.entries.get_mut(at) {
                *place = entry;
                at += 1;
            }
        };
        // The first of several holds.
        let theirs = |list: &List| entries().map(|(_, text)| text).find(|text| list.is_of(text));
        let stays = |text: &[u8]| {
            !is_ours(text) && lists.iter().all(|list| !list.is_of(text) || theirs(list).is_some_and(|text| list.is_good(text)))
        };
        entries().filter(|(_, text)| stays(text)).for_each(|(entry, _)| put(entry));
        put(ours.family.as_ptr().cast());
        preload.entry(theirs(&preload), &mut room.preload).ok()?.into_iter().for_each(&mut put);
        sanitizer.entry(theirs(&sanitizer), &mut room.sanitizer).ok()?.into_iter().for_each(&mut put);
        put(core::ptr::null());
        Some(room.entries.as_ptr())
    });
    if made.is_none() {
        process::count_unrecorded();
    }
    made
}

/// Its library would ask, behind the filter that it is given as well.
#[cold]
fn environment_without_us(given: *const *const c_char, lasts: bool) -> Option<*const *const c_char> {
    process::count_unrecorded();
    if given.is_null() {
        return None;
    }
    let copied = room(lasts).and_then(|room| copy_without_us(given, room));
    if copied.is_none() {
        hide_in(given.cast_mut());
    }
    copied
}

/// The environment that the process was given shows programs that it begins no way to hound any more. `environ` is not asked: other threads
/// may be changing it, and what it points to be gone. The strings themselves stay where the kernel has put them.
#[cold]
pub fn leave_environment() {
    for (shown, name) in [(&SHOWN_WAY, &b"HOUND_FAMILY="[..]), (&SHOWN_LIST, PRELOAD)] {
        let value = shown.load(Ordering::Relaxed);
        if value.is_null() {
            continue;
        }
        // SAFETY: on the initial stack, which is never unmapped, behind the entry's name.
        let before = unsafe { core::slice::from_raw_parts(value.wrapping_sub(name.len()), name.len()) };
        if before != name {
            continue; // the program has written something else there
        }
        // SAFETY: ended by the kernel's zero, or one of the program's that stands before it.
        let text = unsafe { CStr::from_ptr(value.cast()) }.to_bytes();
        let is_list = core::ptr::eq(shown, &SHOWN_LIST);
        if !is_list || paths_of_others(text).next().is_none() {
            // SAFETY: the first byte of what was just read; one store, for threads may be reading.
            unsafe { value.write_volatile(0) };
            continue;
        }
        let mut start = 0;
        for path in text.split(|byte| matches!(byte, b':' | b' ')) {
            // The loader takes nothing between two colons for nothing.
            (start..start + if path.ends_with(LIBRARY) { path.len() } else { 0 }).for_each(|at| {
                // SAFETY: inside the text.
                unsafe { value.wrapping_add(at).write_volatile(b':') };
            });
            start += path.len() + 1;
        }
    }
}

/// What an entry of an environment is to us.
enum Part<'a> {
    Theirs,
    /// Tells where hound is.
    Way,
    /// A list of what is to be preloaded, with us in it.
    Preload(&'a [u8]),
}

/// The entry there, up to the null that ends an environment.
///
/// # Safety
/// All entries before it must have been asked for, and be terminated strings, as exec demands.
unsafe fn part<'a>(place: *const *const c_char) -> Option<(*const c_char, Part<'a>)> {
    // SAFETY: the caller's promise.
    let entry = unsafe { place.read() };
    if entry.is_null() {
        return None;
    }
    // SAFETY: likewise.
    let text = unsafe { CStr::from_ptr(entry) }.to_bytes();
    if text.strip_prefix(VARIABLE.as_bytes()).is_some_and(|rest| rest.starts_with(b"=")) {
        return Some((entry, Part::Way));
    }
    let list = text.strip_prefix(PRELOAD).filter(|list| list.windows(LIBRARY.len()).any(|part| part == LIBRARY));
    Some((entry, list.map_or(Part::Theirs, Part::Preload)))
}

/// The environment without what shows the way to hound. `None` where there is not enough room.
fn copy_without_us(given: *const *const c_char, room: &mut Room) -> Option<*const *const c_char> {
    let mut at = 0;
    let mut place = given;
    // SAFETY: from the first one on, in order.
    while let Some((entry, part)) = unsafe { part(place) } {
        place = place.wrapping_add(1);
        let kept = match part {
            Part::Theirs => entry,
            Part::Preload(list) if put_others(list, &mut room.preload) => room.preload.as_ptr().cast(),
            Part::Preload(_) | Part::Way => continue,
        };
        *room.entries.get_mut(at)? = kept;
        at += 1;
    }
    *room.entries.get_mut(at)? = core::ptr::null();
    Some(room.entries.as_ptr())
}

/// Puts others into the places of entries that show the way to hound. Each is one store, for threads may be reading; none is moved.
fn hide_in(entries: *mut *const c_char) {
    const EMPTY_WAY: &CStr = c"HOUND_FAMILY=";
    const EMPTY_LIST: &CStr = c"LD_PRELOAD=";
    const _: () = assert!(EMPTY_WAY.count_bytes() == VARIABLE.len() + 1 && EMPTY_LIST.count_bytes() == PRELOAD.len());
    let mut place = entries;
    // SAFETY: from the first one on, in order.
    while let Some((_, part)) = unsafe { part(place) } {
        let other = match part {
            Part::Theirs => None,
            Part::Way => Some(EMPTY_WAY.as_ptr()),
            Part::Preload(list) => Some(others(list).unwrap_or(EMPTY_LIST.as_ptr())),
        };
        if let Some(other) = other {
            // SAFETY: an entry with our password or path was put there while the program ran: the array is no constant.
            unsafe { AtomicPtr::from_ptr(place.cast::<*mut c_char>()) }.store(other.cast_mut(), Ordering::Release);
        }
        place = place.wrapping_add(1);
    }
}

/// What else is to be preloaded, as an entry in memory of its own, which stays.
fn others(list: &[u8]) -> Option<*const c_char> {
    paths_of_others(list).next()?; // else no system call for nothing
    let bytes = list.len() + PRELOAD.len() + 2;
    let memory = own::map(bytes)?;
    // SAFETY: just mapped, of that size.
    let is_put = put_others(list, unsafe { core::slice::from_raw_parts_mut(memory, bytes) });
    is_put.then(|| memory.cast_const().cast())
}

fn paths_of_others(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| matches!(byte, b':' | b' ')).filter(|path| !path.is_empty() && !path.ends_with(LIBRARY))
}

/// What else is to be preloaded, as an entry. False if there is nothing, or no room.
fn put_others(list: &[u8], room: &mut [u8]) -> bool {
    let mut length = 0;
    let mut put = |bytes: &[u8]| {
        for byte in bytes {
            let Some(place) = room.get_mut(length) else { return false };
            (*place, length) = (*byte, length + 1);
        }
        true
    };
    let mut others = paths_of_others(list);
    let Some(first) = others.next() else { return false };
    put(PRELOAD) && put(first) && others.all(|path| put(b":") && put(path)) && put(b"\0")
}

fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(word)
}

/// Whether processes that this one begins are to be recorded.
pub fn is_known() -> bool {
    NAME_LENGTH.load(Ordering::Acquire) != 0
}

/// A ring for a program that has just begun.
pub fn ring_of_program(pid: u32) -> Option<&'static Control> {
    ask_for_ring(PROGRAM, pid, 0, 0)
}

/// Says that this program, which has just begun, is not going to be recorded.
pub fn is_not_recorded(pid: u32) {
    let _ = ask(UNRECORDED, pid, 0, 0);
}

/// A ring for the child of a fork whose parent had `parent`'s.
pub fn ring_of_child(pid: u32, parent: &Control) -> Option<&'static Control> {
    let by_this_thread = FORK_THREAD.load(Ordering::Relaxed) == sys::thread_pointer();
    let ticks = if by_this_thread { FORK_TICKS.load(Ordering::Relaxed) } else { 0 };
    FORK_TICKS.store(0, Ordering::Relaxed); // this process' own forks are others
    ask_for_ring(FORKED, pid, parent.member.load(Ordering::Relaxed), ticks)
}

/// A program is about to be executed by this thread, or by a process that it begins: hound patches it at its beginning where no library can be preloaded
/// into it, and for that has to be told before.
pub fn begins(file: image::File, spawns: bool) {
    if filters::came() || !image::has_no_loader(file) {
        return;
    }
    let thread = sys::gettid();
    if let Some(socket) = ask(if spawns { SPAWNS } else { EXECUTES }, sys::getpid(), thread, 0) {
        let mut byte = 0u8;
        // SAFETY: our own descriptor; the kernel writes one byte.
        again(|| unsafe { syscall(READ, [socket.0, &raw mut byte as usize, 1, 0, 0, 0]) });
    }
}

fn ask_for_ring(kind: u32, pid: u32, from: u32, ticks: u64) -> Option<&'static Control> {
    let socket = ask(kind, pid, from, ticks)?;
    let ring = receive(socket.0);
    drop(socket);
    process::map(ring?)
}

/// A connection to hound.
struct Socket(usize);

impl Drop for Socket {
    fn drop(&mut self) {
        sys::close(self.0 as i32);
    }
}

/// Says this to hound, which is to answer.
#[cold]
fn ask(kind: u32, pid: u32, from: u32, ticks: u64) -> Option<Socket> {
    if filters::came() {
        return None;
    }
    let mut password = [0; PASSWORD_BYTES];
    for (bytes, word) in password.chunks_mut(8).zip(&PASSWORD) {
        bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
    }
    let greeting = Greeting { version: ring::VERSION, kind, password, pid, from, ticks };
    const STREAM_CLOEXEC: usize = 1 | 0o2_000_000;
    // SAFETY: makes a new descriptor.
    let socket = unsafe { syscall(SOCKET, [AF_UNIX as usize, STREAM_CLOEXEC, 0, 0, 0, 0]) };
    if socket < 0 {
        return None;
    }
    let socket = Socket(socket as usize);
    greet(socket.0, &greeting).then_some(socket)
}

/// Sends the greeting.
fn greet(socket: usize, greeting: &Greeting) -> bool {
    const SOL_SOCKET: usize = 1;
    const SO_RCVTIMEO: usize = 20;
    const SO_SNDTIMEO: usize = 21;
    let time = [PATIENCE_SECONDS, 0];
    for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
        // SAFETY: our own descriptor; a `struct timeval` as long as is said.
        unsafe { syscall(SETSOCKOPT, [socket, SOL_SOCKET, option, time.as_ptr() as usize, size_of::<[u64; 2]>(), 0]) };
    }
    let mut address = Address { family: AF_UNIX, path: [0; 108] };
    let length = NAME_LENGTH.load(Ordering::Acquire).min(NAME_BYTES);
    // A name that begins with a zero byte is no file.
    for (place, word) in address.path.get_mut(1..).unwrap_or_default().chunks_mut(8).zip(&NAME) {
        place.iter_mut().zip(word.load(Ordering::Relaxed).to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    let address_bytes = size_of::<u16>() + 1 + length;
    // SAFETY: our own descriptor, a live address.
    let connected = again(|| unsafe { syscall(CONNECT, [socket, &raw const address as usize, address_bytes, 0, 0, 0]) });
    if connected < 0 {
        return false;
    }
    const MSG_NOSIGNAL: usize = 0x4000;
    let bytes = greeting.to_bytes();
    // SAFETY: our own descriptor, live bytes.
    let sent = again(|| unsafe { syscall(SENDTO, [socket, bytes.as_ptr() as usize, GREETING_BYTES, MSG_NOSIGNAL, 0, 0]) });
    sent == GREETING_BYTES as isize
}

/// `struct cmsghdr` with one descriptor.
#[repr(C)]
struct Passed {
    length: usize,
    level: i32,
    kind: i32,
    fd: i32,
    _rest: i32,
}

fn receive(socket: usize) -> Option<i32> {
    let mut byte = 0u8;
    let mut parts = [&raw mut byte as usize, 1];
    let mut passed = Passed { length: 0, level: 0, kind: 0, fd: -1, _rest: 0 };
    // `struct msghdr`: name, its length, parts, their number, control, its length, flags.
    let mut message = [0, 0, parts.as_mut_ptr() as usize, 1, &raw mut passed as usize, size_of::<Passed>(), 0];
    const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;
    // SAFETY: our own descriptor; the kernel writes into live objects of the lengths that are said.
    let got = again(|| unsafe { syscall(RECVMSG, [socket, message.as_mut_ptr() as usize, MSG_CMSG_CLOEXEC, 0, 0, 0]) });
    const SOL_SOCKET: i32 = 1;
    const SCM_RIGHTS: i32 = 1;
    // SAFETY: written by the kernel.
    let passed = unsafe { (&raw const passed).read_volatile() };
    (got == 1 && passed.level == SOL_SOCKET && passed.kind == SCM_RIGHTS && passed.fd >= 0).then_some(passed.fd)
}

/// Calls again what a signal has interrupted, some times.
fn again(mut call: impl FnMut() -> isize) -> isize {
    for _ in 0..16 {
        let result = call();
        if result != EINTR {
            return result;
        }
    }
    EINTR
}

/// A fork is about to be made by this thread. The child begins to record at its first event, if it has one: most replace themselves by a
/// program at once.
pub fn begin_fork(caller: Caller, function: impl Function) {
    if is_known() && process::ready() {
        let now = clock::now();
        FORK_THREAD.store(sys::thread_pointer(), Ordering::Relaxed);
        FORK_TICKS.store(now, Ordering::Relaxed);
        record::process(caller, function, tag::PROCESS, PROCESS_FORKS, now);
    }
}

/// What it has returned.
pub fn end_fork(child: i32) {
    if child != 0 {
        FORK_TICKS.store(0, Ordering::Relaxed);
    }
    if child > 0 && is_known() && process::ready() {
        let control = process::control();
        let number = control.forks.load(Ordering::Relaxed) as usize;
        if let Some(place) = control.forked.get(number % control.forked.len()) {
            place.store(child as u32, Ordering::Relaxed);
        }
        control.forks.fetch_add(1, Ordering::Release); // pairs with hound's acquire
    }
}
