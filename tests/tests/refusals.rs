//! Wrong usage and bad luck: one line that says what failed and what to do, exit 2, never a panic.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::capture::hound;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Target, Way};
use hound_tests::{binaries, requirement};
use tempfile::TempDir;

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory can be made")
}

/// Refused as a person wants it: exit 2, nothing on standard output, one line that contains `about`.
fn refused(outcome: &Outcome, about: &str) {
    let err = outcome.err();
    assert_eq!(outcome.status.code(), Some(2), "exit status; stderr: {err}");
    assert_eq!(err.trim_end().lines().count(), 1, "not one line: {err}");
    assert!(err.contains(about), "does not name {about:?}: {err}");
    assert!(outcome.stdout.is_empty(), "said on stdout: {}", outcome.out());
    no_panic(outcome);
}

fn no_panic(outcome: &Outcome) {
    let err = outcome.err();
    for word in ["panicked", "RUST_BACKTRACE", "unwrap", "stack backtrace"] {
        assert!(!err.contains(word), "panic text: {err}");
    }
}

fn run_into(file: &Path, program: &Path) -> Outcome {
    hound([OsStr::new("run"), "--quiet".as_ref(), "-o".as_ref(), file.as_os_str(), "--".as_ref(), program.as_os_str()])
}

#[test]
fn a_missing_program_is_named() {
    let dir = temporary();
    let file = dir.path().join("c.hound");
    refused(&run_into(&file, Path::new("/nonexistent/program")), "/nonexistent/program");
    refused(&run_into(&file, Path::new("no-such-program-anywhere")), "no-such-program-anywhere");
    assert!(!file.exists(), "a refused run left a capture");
}

#[test]
fn a_file_that_is_no_program_is_named() {
    let dir = temporary();
    let plain = dir.path().join("plain.txt");
    fs::write(&plain, "just text\n").expect("the file can be written");
    refused(&run_into(&dir.path().join("c.hound"), &plain), "plain.txt");
    fs::set_permissions(&plain, Permissions::from_mode(0o755)).expect("our own file");
    let outcome = run_into(&dir.path().join("c.hound"), &plain);
    no_panic(&outcome);
    refused(&run_into(&dir.path().join("c.hound"), dir.path()), &dir.path().display().to_string());
}

#[test]
fn an_output_that_cannot_be_written_is_named_and_nothing_is_run() {
    let dir = temporary();
    let sign = dir.path().join("sign");
    for output in ["/nonexistent/directory/c.hound", "/proc/c.hound", "/"] {
        let outcome = hound([
            OsStr::new("run"),
            "--quiet".as_ref(),
            "-o".as_ref(),
            output.as_ref(),
            "--".as_ref(),
            "touch".as_ref(),
            sign.as_os_str(),
        ]);
        refused(&outcome, output);
        assert!(!sign.exists(), "the program ran although its recording could not");
    }
}

#[test]
fn a_32_bit_program_is_refused() {
    let program = Program::new("bits32.s", Build::Plain).with(&["-m32", "-nostdlib", "-static"]).path();
    refused(&run_into(&temporary().path().join("c.hound"), &program), "32-bit");
}

#[test]
fn usage_errors_exit_with_2() {
    for args in [
        &["run"][..],
        &["run", "--"],
        &["report"],
        &["no-such-command"],
        &["report", "--no-such-flag", "x"],
        &["info", "/nonexistent.hound"],
    ] {
        let outcome = hound(args);
        assert_eq!(outcome.status.code(), Some(2), "{args:?}: {}", outcome.err());
        assert!(!outcome.stderr.is_empty());
        no_panic(&outcome);
    }
}

const READERS: [&str; 4] = ["report", "info", "check", "dump"];

#[test]
fn a_foreign_file_is_refused_by_every_reader() {
    let dir = temporary();
    let of = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("the file can be written");
        path
    };
    let noise: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let foreign = [
        of("empty", b""),
        of("text", b"hello\n"),
        of("noise", &noise),
        PathBuf::from("/proc/self/exe"),
        PathBuf::from("/nonexistent"),
        "/".into(),
    ];
    for file in &foreign {
        for reader in READERS {
            refused(&hound([OsStr::new(reader), file.as_os_str()]), &file.display().to_string());
        }
    }
}

#[test]
fn a_capture_cut_anywhere_is_read_up_to_the_cut_and_check_says_so() {
    let recording = Target::new("alloca.c", Build::Optimised).record(Way::Run);
    let whole = recording.capture.events().len();
    let bytes = fs::read(&recording.capture.path).expect("the capture is there");
    let dir = temporary();
    let file = dir.path().join("cut.hound");
    let mut most = 0;
    for part in [1, 2, 5, 8, 9, 12, 15] {
        fs::write(&file, &bytes[..bytes.len() * part / 16]).expect("the file can be written");
        let check = hound([OsStr::new("check"), file.as_os_str()]);
        assert_eq!(check.status.code(), Some(2), "check calls {part}/16 of a capture sound: {}", check.out());
        no_panic(&check);
        for reader in ["report", "dump"] {
            let outcome = hound([OsStr::new(reader), file.as_os_str()]);
            no_panic(&outcome);
            assert!(matches!(outcome.status.code(), Some(0 | 2)), "{reader}: {}", outcome.status);
            if reader == "dump" && outcome.status.success() {
                most = most.max(outcome.out().lines().count());
            }
        }
    }
    assert!(most > 0 && whole > 0, "nothing could be read before any cut");
}

#[test]
fn a_damaged_capture_never_brings_a_reader_down() {
    let recording = Target::new("die.c", Build::Optimised).args(&["exit"]).record(Way::Run);
    let bytes = fs::read(&recording.capture.path).expect("the capture is there");
    let dir = temporary();
    let file = dir.path().join("damaged.hound");
    for k in 1..12 {
        let mut damaged = bytes.clone();
        let at = damaged.len() * k / 12;
        for byte in damaged.iter_mut().skip(at).take(3) {
            *byte ^= 0x55;
        }
        fs::write(&file, damaged).expect("the file can be written");
        assert_eq!(hound([OsStr::new("check"), file.as_os_str()]).status.code(), Some(2), "check misses damage at byte {at}");
        for reader in READERS {
            let outcome = hound([OsStr::new(reader), file.as_os_str()]);
            no_panic(&outcome);
            assert!(matches!(outcome.status.code(), Some(0 | 2)), "{reader}: {} {}", outcome.status, outcome.err());
        }
    }
}

/// A file system of a given size, gone when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(size: &str) -> SmallDisk {
        let dir = temporary();
        let mounted = process::run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(dir.path()));
        assert!(mounted.status.success(), "mount: {}", mounted.err());
        SmallDisk(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        process::run(Command::new("umount").arg(self.0.path()));
    }
}

#[test]
fn a_full_disk_harms_only_the_capture_and_is_told() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("shapes.c", Build::Optimised).path();
    let alone = process::run(Command::new(&program).arg("6000"));
    let disk = SmallDisk::new("64k");
    let file = disk.0.path().join("c.hound");
    let mut command = Command::new(binaries::hound());
    let recorded = process::run(command.args(["run", "--quiet", "-o"]).arg(&file).arg("--").arg(&program).arg("6000"));
    assert_eq!(recorded.out(), alone.out(), "the target noticed the full disk");
    assert_eq!(recorded.status.code(), Some(2), "{}", recorded.err());
    let err = recorded.err();
    assert!(err.contains("No space left") || err.contains("full"), "{err}");
    no_panic(&recorded);
    assert!(File::open(&file).and_then(|f| f.metadata()).is_ok_and(|m| m.len() > 0), "nothing was written before the disk was full");
    no_panic(&hound([OsStr::new("report"), file.as_os_str()]));
}
