//! Unwinding with all callee-saved registers, for the rare code whose rules use more than sp and bp (lazy binding, hand-written
//! assembly). It starts inside this library, whose own rules restore the caller's registers on the way.

use core::arch::naked_asm;

use hound_common::event::MAX_FRAMES;
use hound_common::ring::Counter;
use hound_unwind::{EndReason, FullRegs, RowKind, Stepped, step_full, step_general};

use crate::path::Fresh;
use crate::thread::Thread;
use crate::{guard, modules, rows};

/// Stores the caller's registers as they are after the call returns.
#[unsafe(naked)]
extern "C" fn capture(regs: &mut FullRegs) {
    // Offsets are those of `FullRegs`, which the assertions below pin.
    naked_asm!(
        "mov rax, [rsp]",
        "mov [rdi], rax",
        "lea rax, [rsp + 8]",
        "mov [rdi + 8], rax",
        "mov [rdi + 16], rbp",
        "mov [rdi + 24], rbx",
        "mov [rdi + 32], r12",
        "mov [rdi + 40], r13",
        "mov [rdi + 48], r14",
        "mov [rdi + 56], r15",
        "ret",
    )
}

const _: () = assert!(core::mem::offset_of!(FullRegs, ip) == 0 && core::mem::offset_of!(FullRegs, sp) == 8);
const _: () = assert!(core::mem::offset_of!(FullRegs, bp) == 16 && core::mem::offset_of!(FullRegs, bx) == 24);
const _: () = assert!(core::mem::offset_of!(FullRegs, r12) == 32 && core::mem::offset_of!(FullRegs, r15) == 56);

/// Fills the thread's fresh frames, leaf first, beginning with the return address at `slot`. Returns how many, and why it ended.
#[cold]
#[inline(never)]
pub fn climb(thread: &mut Thread, slot: u64, bp: u64) -> (usize, EndReason) {
    thread.count(Counter::Full, 1);
    let mut regs = FullRegs { ip: 0, sp: 0, bp: 0, bx: 0, r12: 0, r13: 0, r14: 0, r15: 0 };
    capture(&mut regs);
    thread.window.enter(regs.sp);
    let mut recording = false;
    let mut exact = false;
    let mut sure = true;
    let mut count = 0;
    loop {
        if !recording && regs.sp > slot {
            if regs.sp != slot + 8 {
                // Our own frames could not be followed: go on with what is known.
                let Some(ip) = thread.window.read(slot) else { return (0, EndReason::BadRead) };
                regs = FullRegs { ip, sp: slot + 8, bp, ..regs };
            }
            recording = true;
        }
        if recording {
            if count >= MAX_FRAMES || (count == thread.path.capacity() && !thread.path.grow()) {
                return (count, EndReason::DepthLimit);
            }
            // An interrupted ip is exact; stored plus one, all ips are looked up at minus one.
            let ra = regs.ip + u64::from(exact);
            *thread.path.fresh(count) = Fresh { slot: regs.sp.wrapping_sub(8), ra, bp: regs.bp, bp_slot: 0, flags: 0 };
            count += 1;
        }
        let stepped = one_step(thread, &mut regs, exact, &mut sure);
        exact = stepped == Stepped::SignalFrame;
        match stepped {
            Stepped::Frame { .. } => thread.count(Counter::Stepped, 1),
            Stepped::SignalFrame => {
                thread.count(Counter::Stepped, 1);
                thread.window.enter(regs.sp);
            }
            Stepped::End(reason) if recording => return (count, reason),
            Stepped::NeedsFullRegs | Stepped::NeedsSections if recording => return (count, EndReason::Unsupported),
            _ => {
                let Some(ip) = thread.window.read(slot) else { return (0, EndReason::BadRead) };
                regs = FullRegs { ip, sp: slot + 8, bp, ..regs };
            }
        }
    }
}

/// `sure` becomes false with a step by a frame pointer: see [`rows::module_of`].
fn one_step(thread: &mut Thread, regs: &mut FullRegs, exact: bool, sure: &mut bool) -> Stepped {
    let (key, lookup) = if exact { (regs.ip | rows::EXACT, regs.ip) } else { (regs.ip, regs.ip - 1) };
    let row = rows::row(thread, key, *sure);
    let module = if row.kind() == RowKind::General { rows::module_of(thread, lookup, *sure) } else { None };
    *sure &= row.kind() != RowKind::FramePointer;
    if row.kind() != RowKind::General {
        let window = &mut thread.window;
        return step_full(row, regs, |addr| window.read(addr));
    }
    let sections = match module.map(|module| modules::sections(&module)) {
        Some(Ok(sections)) => sections,
        Some(Err(reason)) => return Stepped::End(reason),
        None => return Stepped::End(EndReason::NoModule),
    };
    let mut stepped = Stepped::End(EndReason::TooComplex);
    let Thread { anchor, window, .. } = thread;
    let mut body = || {
        if let Some(result) = rows::with_scratch(|scratch| step_general(&sections, lookup, scratch, regs, |addr| window.read(addr))) {
            stepped = result;
        }
    };
    if guard::protected(anchor, &mut body) { stepped } else { Stepped::End(EndReason::BadSection) }
}
