//! Walks of this process's own stack are frame by frame what `backtrace(3)` gives, which is libgcc's independent unwinder.

#[path = "process/mod.rs"]
mod process;

use std::cell::RefCell;
use std::ffi::CStr;
use std::sync::Mutex;

use hound_unwind::{EndReason, RowKind, Saved, Scratch, evaluate};
use process::{DEPTH, Library, Module, Stacks, Track, compile, modules, registers, walk};

/// What the callbacks of a thread use and leave behind.
struct Comparison {
    modules: Vec<Module>,
    stacks: Stacks,
    scratch: Scratch,
    kinds: Vec<RowKind>,
    /// Walks compared, and those of them that the fast registers sufficed for.
    walks: usize,
    fast: usize,
}

thread_local! {
    static COMPARISON: RefCell<Option<Comparison>> = const { RefCell::new(None) };
}

/// Runs `body` with callbacks ready to compare; returns what they saw.
fn comparing(body: impl FnOnce()) -> Comparison {
    let comparison =
        Comparison { modules: modules(), stacks: Stacks::of_this_thread(), scratch: Scratch::new(), kinds: Vec::new(), walks: 0, fast: 0 };
    COMPARISON.set(Some(comparison));
    body();
    COMPARISON.take().expect("set above")
}

/// The callback at the end of every path: this thread's stack walked three ways must be the same stack.
#[inline(never)]
extern "C" fn compare() {
    let mut theirs = [std::ptr::null_mut(); DEPTH];
    // SAFETY: the array has that many places.
    let depth = unsafe { libc::backtrace(theirs.as_mut_ptr(), DEPTH as i32) };
    let theirs = theirs.map(|ip| ip as u64);
    let regs = registers();
    COMPARISON.with_borrow_mut(|comparison| {
        let Comparison { modules, stacks, scratch, kinds, walks, fast } = comparison.as_mut().expect("inside of `comparing`");
        let ours = walk(modules, stacks, scratch, regs, Track::Full);
        // The leaf frame is this function in both, at two places.
        assert_eq!(ours.ips()[1..], theirs[1..depth as usize], "row kinds {:?}", ours.kinds().collect::<Vec<_>>());
        assert_eq!(ours.end, EndReason::Root);
        kinds.extend(ours.kinds());
        let shorter = walk(modules, stacks, scratch, regs, Track::Fast);
        assert!(ours.ips().starts_with(shorter.ips()));
        *walks += 1;
        *fast += usize::from(shorter.end == EndReason::Root);
    });
}

/// Signal handlers belong to the process, tests run in threads: held while one is installed.
static SIGNALS: Mutex<()> = Mutex::new(());

const BUILDS: [(&str, [&str; 2]); 4] = [
    ("O0-fp", ["-O0", "-fno-omit-frame-pointer"]),
    ("O0-nofp", ["-O0", "-fomit-frame-pointer"]),
    ("O2-fp", ["-O2", "-fno-omit-frame-pointer"]),
    ("O2-nofp", ["-O2", "-fomit-frame-pointer"]),
];

const PATHS: [&CStr; 7] =
    [c"recurse", c"with_alloca", c"realigned", c"many_saved", c"through_qsort", c"through_signal", c"through_resolver"];

#[test]
fn every_kind_of_path_in_four_builds_equals_backtrace() {
    let _alone = SIGNALS.lock();
    for (name, flags) in BUILDS {
        let library = Library::open(&compile("paths.c", &format!("live-{name}"), &flags));
        for path in PATHS {
            let seen = comparing(|| {
                for depth in [0, 1, 2, 30] {
                    // SAFETY: a fixture's path, called as declared.
                    unsafe { library.path(path)(depth, compare) };
                }
            });
            // The resolver calls back only once, since what it found stays bound.
            assert_eq!(seen.walks, if path == c"through_resolver" { 1 } else { 4 }, "{name} {path:?}");
            let expected = match path.to_str() {
                Ok("with_alloca") => RowKind::Bp,
                Ok("realigned") => RowKind::DerefBp,
                Ok("through_signal") => RowKind::Signal,
                Ok("through_resolver") => RowKind::Reg(Saved::Bx),
                _ => RowKind::Root,
            };
            assert!(seen.kinds.contains(&expected), "{name} {path:?} was to reach {expected:?}: {:?}", seen.kinds);
            let only_full = matches!(expected, RowKind::Reg(_));
            assert_eq!(seen.fast, if only_full { 0 } else { seen.walks }, "{name} {path:?}: walks by sp and bp alone");
        }
    }
}

#[test]
fn a_handler_on_an_alternate_stack_leads_back_to_the_interrupted_one() {
    let _alone = SIGNALS.lock();
    let library = Library::open(&compile("paths.c", "alternate", &["-O2"]));
    let memory = vec![0_u64; 32 * 1024];
    let range = memory.as_ptr() as u64..memory.as_ptr() as u64 + 8 * memory.len() as u64;
    let alternate = libc::stack_t { ss_sp: memory.as_ptr().cast_mut().cast(), ss_flags: 0, ss_size: 8 * memory.len() };
    // SAFETY: all zeroes is a valid value to be overwritten.
    let mut before: libc::stack_t = unsafe { std::mem::zeroed() };
    // SAFETY: the memory outlives its use, which ends with the second call.
    assert_eq!(unsafe { libc::sigaltstack(&raw const alternate, &raw mut before) }, 0);
    let seen = comparing(|| {
        COMPARISON.with_borrow_mut(|comparison| comparison.as_mut().expect("just set").stacks.0.push(range));
        // SAFETY: a fixture's path, called as declared.
        unsafe { library.path(c"through_alternate_stack")(5, compare) };
    });
    // SAFETY: restores what was there.
    assert_eq!(unsafe { libc::sigaltstack(&raw const before, std::ptr::null_mut()) }, 0);
    assert_eq!(seen.walks, 1);
    assert!(seen.kinds.contains(&RowKind::Signal));
}

#[test]
fn the_entry_point_of_the_program_is_a_root() {
    // SAFETY: no preconditions.
    let entry = unsafe { libc::getauxval(libc::AT_ENTRY) };
    let modules = modules();
    let module = modules.iter().find(|module| module.code.contains(&entry)).expect("the program is loaded");
    assert_eq!(evaluate(&module.sections, entry + 8, &mut Scratch::new()).kind(), RowKind::Root);
}

thread_local! {
    static ROWLESS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static ROWLESS_KINDS: RefCell<Vec<RowKind>> = const { RefCell::new(Vec::new()) };
}

extern "C" fn walk_without_rows() {
    let regs = registers();
    let walked = walk(&modules(), &Stacks::of_this_thread(), &mut Scratch::new(), regs, Track::Full);
    assert_eq!(walked.end, EndReason::Root, "{:?}", walked.kinds().collect::<Vec<_>>());
    ROWLESS.set(walked.ips().to_vec());
    ROWLESS_KINDS.set(walked.kinds().collect());
}

#[test]
fn code_without_rows_is_crossed_by_its_frame_pointers() {
    let flags = ["-O2", "-fno-omit-frame-pointer", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
    let library = Library::open(&compile("paths.c", "rowless", &flags));
    let recurse = library.symbol(c"recurse") as u64;
    // SAFETY: a fixture's path, called as declared.
    unsafe { library.path(c"recurse")(7, walk_without_rows) };
    let (ips, kinds) = (ROWLESS.take(), ROWLESS_KINDS.take());
    let inside: Vec<_> = (0..ips.len()).filter(|&n| (recurse..recurse + 0x100).contains(&ips[n])).collect();
    assert_eq!(inside, (1..9).collect::<Vec<_>>(), "eight frames, right above the callback");
    assert!(inside.iter().all(|&n| kinds[n] == RowKind::FramePointer), "{kinds:?}");
    assert!(ips.len() > 12, "and then the test's own frames");
}
