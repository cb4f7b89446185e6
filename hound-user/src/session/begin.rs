//! How `hound run` begins a program that the library is preloaded into: with the environment as hound was given it, entry by entry in its order,
//! and what the library needs behind it.
//!
//! `std::process::Command` sorts the environment by name as soon as it is changed, which `env` and whoever lists it would show, and begins a
//! program by `posix_spawn`, which leaves two signals of the C library's ignored. So the last step before the exec does the exec itself.
//!
//! Which signals are ignored is inherited, too. Rust's runtime ignores SIGPIPE in hound, and lets no child begin so; the C library handles one of its
//! own where there are threads: what hound was given is noted before either begins.

use std::ffi::{CString, OsStr, OsString, c_char};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// A variable that is set, or (`None`) taken out.
pub(super) type Change = (&'static str, Option<OsString>);

/// The program with these words as its arguments, the first being its name, and hound's environment so changed.
///
/// # Errors
/// If a word holds a zero byte.
#[expect(unsafe_code, reason = "makes the last step before the exec its own")]
pub(super) fn command(program: &Path, words: &[OsString], changes: &[Change]) -> io::Result<Command> {
    let path = CString::new(program.as_os_str().as_bytes())?;
    let words = Words::of(words.iter().cloned())?;
    let environment = Words::of(changed(std::env::vars_os(), changes).into_iter())?;
    let mut command = Command::new(program);
    let begin = move || {
        give_back_ignored();
        exec(&path, &words, &environment)
    };
    // SAFETY: the closure allocates nothing and takes no lock: it makes system calls, with memory that was made before the fork.
    unsafe { command.pre_exec(begin) };
    Ok(command)
}

/// Signals that were ignored when hound was begun, the lowest bit being signal 1.
static IGNORED: AtomicU64 = AtomicU64::new(0);
const SIGNALS: i32 = 64;

#[expect(unsafe_code, reason = "runs before main")]
#[used]
// SAFETY: the C library calls what stands there once, with arguments that the function leaves alone; it needs nothing of Rust's runtime.
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = note_ignored;

/// As the kernel takes it: the C library keeps two signals to itself, and would refuse to tell of them.
#[repr(C)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

extern "C" fn note_ignored() {
    let is_ignored = |signal: &i32| {
        let mut action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };
        rt_sigaction(*signal, std::ptr::null(), &raw mut action) && action.handler == libc::SIG_IGN
    };
    let ignored = (1..=SIGNALS).filter(is_ignored).fold(0, |all, signal| all | 1 << (signal - 1));
    IGNORED.store(ignored, Ordering::Relaxed);
    // A file that must not grow is an error like a full disk, not hound's end.
    rt_sigaction(libc::SIGXFSZ, &IGNORE, std::ptr::null_mut());
}

const IGNORE: Action = Action { handler: libc::SIG_IGN, flags: 0, restorer: 0, mask: 0 };

/// Between fork and exec: signals are ignored that were when hound was begun. Those that hound or its C library handles are no more; all others
/// are inherited.
pub(super) fn give_back_ignored() {
    let ignored = IGNORED.load(Ordering::Relaxed);
    rt_sigaction(libc::SIGXFSZ, &Action { handler: libc::SIG_DFL, ..IGNORE }, std::ptr::null_mut());
    for signal in (1..=SIGNALS).filter(|signal| ignored >> (signal - 1) & 1 == 1) {
        rt_sigaction(signal, &IGNORE, std::ptr::null_mut());
    }
}

#[expect(unsafe_code, reason = "the disposition of a signal has no safe interface")]
fn rt_sigaction(signal: i32, new: *const Action, old: *mut Action) -> bool {
    // SAFETY: both point to an action or to nothing; none of them names a handler.
    unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, new, old, size_of::<u64>()) == 0 }
}

#[expect(unsafe_code, reason = "std's own exec sorts the environment")]
fn exec(path: &CString, words: &Words, environment: &Words) -> io::Result<()> {
    // SAFETY: all three are terminated, and outlive the call, which does not return unless it fails.
    unsafe { libc::execvpe(path.as_ptr(), words.pointer(), environment.pointer()) };
    Err(io::Error::last_os_error())
}

/// Entries `NAME=value`, each change where the variable stood, or at the end.
fn changed(given: impl Iterator<Item = (OsString, OsString)>, changes: &[Change]) -> Vec<OsString> {
    let mut left: Vec<&Change> = changes.iter().collect();
    let mut entries = Vec::new();
    for (name, value) in given {
        if !changes.iter().any(|(changed, _)| name == *changed) {
            entries.push(entry(&name, &value));
        } else if let Some(at) = left.iter().position(|(changed, _)| name == *changed) {
            entries.extend(left.remove(at).1.as_deref().map(|value| entry(&name, value)));
        }
    }
    entries.extend(left.into_iter().filter_map(|(name, value)| Some(entry(OsStr::new(name), value.as_deref()?))));
    entries
}

fn entry(name: &OsStr, value: &OsStr) -> OsString {
    [name, OsStr::new("="), value].into_iter().collect()
}

/// Strings as exec takes them.
struct Words {
    /// The addresses of the strings, and a zero.
    pointers: Vec<usize>,
    /// What they point to, on the heap: it stays where it is when this is moved.
    _strings: Vec<CString>,
}

impl Words {
    fn of(words: impl Iterator<Item = OsString>) -> io::Result<Words> {
        let strings: Vec<CString> = words.map(|word| CString::new(word.into_vec())).collect::<Result<_, _>>()?;
        let pointers = strings.iter().map(|word| word.as_ptr() as usize).chain([0]).collect();
        Ok(Words { pointers, _strings: strings })
    }

    fn pointer(&self) -> *const *const c_char {
        self.pointers.as_ptr().cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_keeps_its_order_and_a_change_is_made_where_the_variable_stood() {
        let given = [("Z", "1"), ("LD_PRELOAD", "a.so"), ("A", ""), ("B", "x=y"), ("LD_PRELOAD", "b.so")];
        let given = given.into_iter().map(|(name, value)| (name.into(), value.into()));
        let changes = [("LD_PRELOAD", Some("c.so:a.so".into())), ("NEW", Some("2".into())), ("B", None), ("NONE", None)];
        assert_eq!(changed(given, &changes), ["Z=1", "LD_PRELOAD=c.so:a.so", "A=", "NEW=2"]);
    }

    #[test]
    fn a_program_that_cannot_be_begun_says_why() {
        let error = command(Path::new("/nowhere"), &["x".into()], &[]).and_then(|mut command| command.spawn()).expect_err("not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn its_name_words_and_environment_are_those_given() {
        let words = ["other", "-c", "echo $0 $A; exit 3"].map(OsString::from);
        let mut command = command(Path::new("/bin/sh"), &words, &[("A", Some("b".into()))]).expect("no zeros");
        let output = command.output().expect("a shell is there");
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"other b\n"[..], Some(3)));
    }
}
