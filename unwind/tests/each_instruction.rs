//! Walks from *every instruction* of a program: it runs with the processor's trap flag set, and the handler of each trap
//! compares its own stack with `backtrace(3)`. That reaches what calls never show: prologues, epilogues, lazy `.plt` stubs
//! and the loader's resolver, each as an interrupted frame.

#[path = "process/mod.rs"]
mod process;

use std::cell::RefCell;
use std::ffi::{CStr, c_int};

use hound_unwind::{EndReason, RowKind, Saved, Scratch};
use process::{DEPTH, Library, Module, Stacks, Track, Walk, compile, modules, registers, walk};

/// What the handler uses and leaves behind.
struct Traps {
    modules: Vec<Module>,
    stacks: Stacks,
    scratch: Scratch,
    /// Kinds of the row of the interrupted instruction, which is two frames above the handler.
    interrupted: Vec<RowKind>,
    traps: usize,
    wrong: Option<(Walk, Vec<u64>)>,
}

thread_local! {
    static TRAPS: RefCell<Option<Traps>> = const { RefCell::new(None) };
}

#[inline(never)]
extern "C" fn on_trap(_: c_int) {
    let mut theirs = [std::ptr::null_mut(); DEPTH];
    // SAFETY: the array has that many places.
    let depth = unsafe { libc::backtrace(theirs.as_mut_ptr(), DEPTH as i32) };
    let regs = registers();
    TRAPS.with_borrow_mut(|traps| {
        let Some(Traps { modules, stacks, scratch, interrupted, traps, wrong }) = traps else { return };
        let theirs = &theirs.map(|ip| ip as u64)[1..depth as usize];
        let ours = walk(modules, stacks, scratch, regs, Track::Full);
        *traps += 1;
        let kind = ours.kinds().nth(2);
        if ours.end == EndReason::Root {
            // Where sp and bp suffice they lead to the same frames.
            let fast = walk(modules, stacks, scratch, regs, Track::Fast);
            if fast.end == EndReason::Root && fast.ips() != ours.ips() && wrong.is_none() {
                *wrong = Some((fast, theirs.to_vec()));
            }
        }
        // No allocation here: the interrupted code may be anything.
        if let Some(kind) = kind
            && !interrupted.contains(&kind)
            && interrupted.len() < interrupted.capacity()
        {
            interrupted.push(kind);
        }
        let equal = ours.end == EndReason::Root && ours.ips()[1..] == *theirs;
        if !equal && wrong.is_none() {
            *wrong = Some((ours, theirs.to_vec()));
        }
    });
}

/// Runs `body` one instruction at a time.
fn step_through(body: impl FnOnce()) -> Traps {
    let traps = Traps {
        modules: modules(),
        stacks: Stacks::of_this_thread(),
        scratch: Scratch::new(),
        interrupted: Vec::with_capacity(16),
        traps: 0,
        wrong: None,
    };
    TRAPS.set(Some(traps));
    // SAFETY: all zeroes is a valid value to be overwritten.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_trap as extern "C" fn(c_int) as usize;
    // SAFETY: a valid handler; SIGTRAP is raised by this thread alone.
    assert_eq!(unsafe { libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()) }, 0);
    // The handler must not be the one to load libgcc, which `backtrace` does when it is first called.
    on_trap(0);
    // SAFETY: sets the trap flag; the handler is in place.
    unsafe { begin_traps() };
    body();
    // SAFETY: clears the flag again.
    unsafe { end_traps() };
    TRAPS.take().expect("set above")
}

// Functions of their own, since the pushes must be in the call frame information too: these instructions trap as well.
std::arch::global_asm!(
    ".globl begin_traps, end_traps",
    "begin_traps:",
    ".cfi_startproc",
    "pushfq",
    ".cfi_adjust_cfa_offset 8",
    "or qword ptr [rsp], 0x100",
    "popfq",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    "end_traps:",
    ".cfi_startproc",
    "pushfq",
    ".cfi_adjust_cfa_offset 8",
    "and qword ptr [rsp], ~0x100",
    "popfq",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
);

unsafe extern "C" {
    fn begin_traps();
    fn end_traps();
}

extern "C" fn do_nothing() {}

/// Without `realigned`: gcc 12's call frame information is wrong in the last two instructions of such functions (rbp still
/// "saved at rbp + 0" when it has been popped), which makes libgcc itself crash there. live_stacks.rs covers their calls.
const PATHS: [&CStr; 6] = [c"recurse", c"with_alloca", c"many_saved", c"through_qsort", c"through_signal", c"through_resolver"];

#[test]
fn the_stack_of_every_instruction_equals_backtrace() {
    let mut kinds = Vec::new();
    let mut traps = 0;
    for (name, flags) in [
        ("O0", ["-O0", "-fomit-frame-pointer"]),
        ("O2-fp", ["-O2", "-fno-omit-frame-pointer"]),
        ("O2-nofp", ["-O2", "-fomit-frame-pointer"]),
    ] {
        let library = Library::open(&compile("paths.c", &format!("each-{name}"), &flags));
        for path in PATHS {
            let run = library.path(path);
            // SAFETY: a fixture's path, called as declared.
            let seen = step_through(|| unsafe { run(2, do_nothing) });
            if let Some((ours, theirs)) = seen.wrong {
                let kinds: Vec<_> = ours.kinds().collect();
                panic!("{name} {path:?}: {:?}\nours   {:x?}\ntheirs {theirs:x?}\n{kinds:?}", ours.end, &ours.ips()[1..]);
            }
            assert!(seen.traps > 20, "{name} {path:?}: {} traps", seen.traps);
            kinds.extend(seen.interrupted);
            traps += seen.traps;
        }
    }
    println!("{traps} stacks compared");
    for expected in [RowKind::Sp, RowKind::Bp, RowKind::Reg(Saved::Bx), RowKind::Plt] {
        assert!(kinds.contains(&expected), "the programs were to reach {expected:?}, not only {kinds:?}");
    }
}
