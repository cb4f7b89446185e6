//! Messages about calls: a header and a copy of the stack, written straight into the ring.

use crate::kernel::{
    CALL_AT_ONCE, CALL_STACK_CUT, COUNT_STACK_CUT, COUNT_STACK_UNREADABLE, Call, Cookie, REGISTERS, STACK_SMALLEST, Settings, class_bytes,
    stack_class,
};
use crate::maps::{EVENTS, count};
use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, pt_regs};
use aya_ebpf::helpers::generated::bpf_probe_read_user;
use core::arch::asm;
use core::mem::offset_of;

const PAGE: u64 = 4096;

/// [`Call`] without its registers, which go straight into the ring: a program has 512 bytes of stack.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Head {
    pub message: u32,
    pub flags: u32,
    pub id: u64,
    pub time_ns: u64,
    pub pid: u32,
    pub tid: u32,
    pub cookie: u64,
    pub made_by: u64,
    pub size: u64,
    pub pointer: u64,
    pub interval: u64,
    pub stack_bytes: u32,
    pub detail: u32,
    pub own_tid: u32,
    pub holes: u32,
}

const _: () = assert!(size_of::<Head>() == offset_of!(Call, registers) && offset_of!(Head, holes) == offset_of!(Call, holes));

/// What a reservation of one stack class holds.
#[repr(C)]
struct Record<const STACK: usize> {
    head: Head,
    registers: [u64; REGISTERS],
    stack: [u8; STACK],
}

/// Sends a message that has no stack. False if the ring is full.
#[inline(always)]
pub fn send<T: Copy + 'static>(message: &T, settings: &Settings) -> bool {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else { return false };
    entry.write(*message);
    entry.submit(waking(settings.wake_bytes, size_of::<T>() as u64));
    true
}

/// Sends a call with at most `class` of its stack. False if the ring is full.
///
/// Not inlined: seven copies of the loop below in each of the programs would be a verifier's work for nothing.
#[inline(never)]
pub fn send_call(head: &mut Head, regs: &pt_regs, settings: &Settings, class: u64) -> bool {
    match fitting(stack_pointer(head, regs), class) {
        0 => with_stack::<0>(head, regs, settings, class),
        1 => with_stack::<2048>(head, regs, settings, class),
        2 => with_stack::<4096>(head, regs, settings, class),
        3 => with_stack::<8192>(head, regs, settings, class),
        4 => with_stack::<16384>(head, regs, settings, class),
        5 => with_stack::<32768>(head, regs, settings, class),
        _ => with_stack::<65536>(head, regs, settings, class),
    }
}

/// The smallest class that holds all of the stack that a larger one would. Ring space is reserved in constant sizes before anything is
/// read; whether a page of a class's upper half is there says whether that is worth reserving. Every page is asked for, from the end on:
/// one that nobody has touched yet may lie between others.
#[inline(always)]
fn fitting(sp: u64, class: u64) -> u64 {
    let least = class_bytes(1);
    let mut at = class_bytes(class);
    // The largest class has sixteen pages.
    let mut tries = 0;
    while at > least && tries < 20 {
        at -= if at > PAGE { PAGE } else { least };
        let mut byte = 0u8;
        if read_user(&raw mut byte, 1, sp + at) {
            return stack_class(at + 1);
        }
        tries += 1;
    }
    if class == 0 { 0 } else { 1 }
}

#[inline(always)]
fn with_stack<const STACK: usize>(head: &mut Head, regs: &pt_regs, settings: &Settings, asked: u64) -> bool {
    let Some(mut entry) = EVENTS.reserve::<Record<STACK>>(0) else { return false };
    let record = entry.as_mut_ptr();
    let sp = stack_pointer(head, regs);
    copy_stack::<STACK>(record, sp);
    // SAFETY: the reservation is of this type's size; the verifier checks it.
    let copied = unsafe { &raw const (*record).head };
    // SAFETY: as above.
    head.holes = unsafe { (&raw const (*copied).holes).read_volatile() };
    // SAFETY: as above.
    head.stack_bytes = unsafe { (&raw const (*copied).stack_bytes).read_volatile() };
    let read = head.stack_bytes as u64;
    if read < class_bytes(asked) {
        head.flags |= CALL_STACK_CUT;
        count(if read == 0 { COUNT_STACK_UNREADABLE } else { COUNT_STACK_CUT });
    }
    // SAFETY: as above.
    let to = unsafe { &raw mut (*record).head };
    // SAFETY: as above.
    unsafe { to.write(*head) };
    // SAFETY: as above.
    let to = unsafe { &raw mut (*record).registers };
    // SAFETY: as above.
    unsafe { to.write(registers(regs, sp)) };
    let at_once = head.flags & CALL_AT_ONCE != 0;
    let waking = waking(settings.wake_bytes, size_of::<Record<STACK>>() as u64);
    entry.submit(if at_once { BPF_RB_FORCE_WAKEUP as u64 } else { waking });
    true
}

/// rsp as it was before the function's first instruction.
#[inline(always)]
pub fn stack_pointer(head: &Head, regs: &pt_regs) -> u64 {
    regs.rsp + 8 * Cookie::from_bits(head.cookie).pushes as u64
}

/// By their DWARF numbers.
#[inline(always)]
fn registers(regs: &pt_regs, sp: u64) -> [u64; REGISTERS] {
    [
        regs.rax, regs.rdx, regs.rcx, regs.rbx, regs.rsi, regs.rdi, regs.rbp, sp, regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13,
        regs.r14, regs.r15, regs.rip,
    ]
}

/// Copies piece by piece, over pages that are not in memory: what a function has set aside and not touched yet, what was swapped out. Nothing
/// is paged in for it: that takes a program that may sleep, holding its place in the ring, which nobody can read past, until a disk has
/// answered; and it would make the target larger. Frames are seldom in such a page, so that the stack is followed on the other side of it.
///
/// Notes how many bytes there are up to the last one that was read, and which pages are missing: in the ring, since the verifier would
/// follow every value that these might have here.
#[inline(always)]
fn copy_stack<const STACK: usize>(record: *mut Record<STACK>, sp: u64) {
    let stack = STACK as u64;
    let piece = if stack < PAGE { STACK_SMALLEST } else { PAGE };
    // SAFETY: the reservation is of this type's size; the verifier checks it.
    let to = unsafe { &raw mut (*record).stack }.cast::<u8>();
    // SAFETY: as above.
    let noted = unsafe { &raw mut (*record).head.holes };
    // SAFETY: as above.
    let end = unsafe { &raw mut (*record).head.stack_bytes };
    // SAFETY: as above.
    unsafe { noted.write_volatile(0) };
    // SAFETY: as above.
    unsafe { end.write_volatile(0) };
    // From `sp` to the end of its page.
    let mut rest = PAGE - (sp & (PAGE - 1));
    // Else the compiler knows its bounds, leaves out comparisons with them, and the verifier does not know them.
    // SAFETY: takes away bits that are not set.
    unsafe { asm!("{rest} &= 0x1fff", rest = inout(reg) rest) };
    let mut at = 0u64;
    // A piece that is not aligned spans this page and the next.
    let mut page = 0u32;
    while at < stack {
        // SAFETY: `at` is a multiple of `piece` below STACK, which is one, too.
        let here = unsafe { to.add(at as usize) };
        // SAFETY: as above.
        let holes = unsafe { noted.read_volatile() };
        let mut missing = 0u32;
        let mut read = 0u64;
        let is_there = holes >> (page & 31) & 1 == 0;
        if is_there && read_user(here, piece as u32, sp + at) {
            read = at + piece;
        } else if is_there && rest < piece && read_user(here, rest as u32, sp + at) {
            read = at + rest;
            missing = 2;
        } else {
            missing = 1;
            if at + piece < stack && rest <= PAGE {
                // The next page as a whole: it reaches into the next piece, which has room for it.
                // SAFETY: `at` + `rest` is at most `at` + `piece`, behind which there is another piece.
                let next = unsafe { here.add(rest as usize) };
                if read_user(next, PAGE as u32, sp + at + rest) {
                    read = at + rest + PAGE;
                } else {
                    missing = 3;
                }
            }
        }
        if missing != 0 {
            // SAFETY: as above.
            unsafe { noted.write_volatile(holes | missing << (page & 31)) };
        }
        if read != 0 {
            // SAFETY: as above.
            unsafe { end.write_volatile(read as u32) };
        }
        at += piece;
        page += 1;
    }
}

/// Reads the target's memory as far as it is there: nothing is paged in.
#[inline(always)]
fn read_user(to: *mut u8, bytes: u32, from: u64) -> bool {
    // SAFETY: `to` has room for so many bytes; the verifier checks it. `from` may be anything.
    unsafe { bpf_probe_read_user(to.cast(), bytes, from as *const _) == 0 }
}

/// Flags for a submission: the consumer is woken when the ring has filled by another quarter; its own timer does the rest. A wake-up costs
/// more than the message.
#[inline(always)]
pub fn waking(wake_bytes: u64, added: u64) -> u64 {
    let filled = EVENTS.query(BPF_RB_AVAIL_DATA as u64);
    let before = filled.wrapping_sub(added);
    if (filled ^ before) & !(wake_bytes - 1) == 0 { BPF_RB_NO_WAKEUP as u64 } else { BPF_RB_FORCE_WAKEUP as u64 }
}
