//! The kernel's probes beside others: a second hound, another tracer, what an earlier attach has left; in containers; with few privileges.

use std::fs;
use std::path::Path;
use std::process::Command;

use hound_tests::attach::{self, Footprint, Session, Subject, changed_bytes};
use hound_tests::binaries;
use hound_tests::compare::Rules;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome, wait_until};
use hound_tests::requirement;
use nix::sys::signal::{Signal, kill};

fn program() -> Program {
    Program::new("attach_target.c", Build::Optimised)
}

fn ruled(mut subject: Subject) -> Subject {
    subject.rules.function_starts = program().function_starts();
    subject.observed_from_the_kernel()
}

fn subject() -> Subject {
    ruled(Subject::start(&mut Command::new(program().path())))
}

fn attach(subject: &Subject, name: &str) -> Session {
    attach::attach_kernel(subject.pid(), &subject.file(name), &SMALL)
}

/// The program's stacks are shallow, and hound reads small copies faster than it makes calls.
const SMALL: [&str; 2] = ["--stack", "2Ki"];

fn kernel(pid: i32, capture: &Path) -> Command {
    attach::kernel_command(pid, capture, &SMALL)
}

fn refused(command: &mut Command, parts: &[&str]) -> Outcome {
    let outcome = process::run(command);
    let said = outcome.err();
    assert_eq!(outcome.status.code(), Some(2), "not refused: {said}");
    assert!(!said.contains("panicked"), "{said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "not said: {part}\n{said}"));
    outcome
}

#[test]
fn a_second_hound_is_refused_and_the_first_goes_on() {
    if !requirement::uprobes() {
        return;
    }
    let mut subject = subject();
    let first = attach(&subject, "first.hound");
    let number = first.running.pid.to_string();
    let second = subject.file("second.hound");
    refused(&mut kernel(subject.pid(), &second), &["being recorded already", &number]);
    refused(&mut attach::attach_command(subject.pid(), &second, &[]), &["being recorded already", &number]);
    assert!(!second.exists(), "a refusal leaves no file");
    subject.order("noted");
    subject.must_be_exact(&first.detach(&[]), 0);
    subject.end();
}

#[test]
fn two_programs_that_share_their_libc_are_recorded_at_once_each_for_itself() {
    if !requirement::uprobes() {
        return;
    }
    let (mut one, mut two, mut none) = (subject(), subject(), subject());
    let untouched = Footprint::of(none.pid());
    let sessions = (attach(&one, "one.hound"), attach(&two, "two.hound"));
    assert!(changed_bytes(one.pid()) > 0 && changed_bytes(two.pid()) > 0, "no breakpoints");
    for order in ["noted", "threads"] {
        [&mut one, &mut two, &mut none].into_iter().for_each(|subject| subject.order(order));
    }
    // Probes of one process are no other's.
    Footprint::of(none.pid()).must_be_as(&untouched, "of a program that nobody observes");
    let first = sessions.0.detach(&[]);
    one.order("quiet");
    two.order("noted");
    let second = sessions.1.detach(&[]);
    for (subject, capture, phases) in [(&one, &first, 0..2), (&two, &second, 0..3)] {
        subject.must_be_exact_in(capture, phases);
    }
    [one, two, none].into_iter().for_each(|subject| drop(subject.end()));
}

/// The path of libc as the process has it, and malloc's offset in it.
fn malloc(pid: i32) -> (String, u64) {
    let line = attach::maps(pid).into_iter().find(|line| line.contains("libc.so.6") && line.contains("r-xp")).expect("libc is mapped");
    let path = line.split_whitespace().last().expect("a path").to_owned();
    let symbols = attach::nm(&path, "-D");
    let (address, _) = symbols.iter().find(|(_, name)| name == "malloc").expect("libc has malloc");
    // Debian's libc has its code at the addresses of its file.
    (path, u64::from_str_radix(address, 16).expect("an address"))
}

#[test]
fn another_tracers_probe_on_malloc_is_named_or_borne_and_the_program_lives() {
    if !requirement::uprobes() {
        return;
    }
    let mut subject = subject();
    let pid = subject.pid();
    let (path, offset) = malloc(pid);
    let tracer = Program::new("attach_uprobe.c", Build::Optimised).path();
    let hold = |pid: i32| {
        let tracer = process::start(Command::new(&tracer).args([&pid.to_string(), &path, &offset.to_string()]));
        tracer.wait_for_output("holding");
        tracer
    };
    let foreign = hold(pid);
    assert!(changed_bytes(pid) > 0, "the other's probe is not in the text");
    // A breakpoint may be a debugger's, and then must not be shared: hound leaves the function alone, and says so.
    let session = attach(&subject, "without.hound");
    subject.order("noted");
    let capture = session.detach(&[]);
    let report = capture.ask("report", &[]).out();
    let named = |line: &str| line.contains("NOT recorded") && line.contains("malloc") && line.contains("breakpoint");
    assert!(report.lines().any(named), "malloc is not named as not recorded: {report}");
    assert!(changed_bytes(pid) > 0, "the other's probe has gone");
    kill(foreign.pid, Signal::SIGKILL).expect("it runs");
    foreign.finish();
    assert!(wait_until(|| changed_bytes(pid) == 0), "the other's probe stays");
    // The other way round both observe.
    let session = attach(&subject, "capture.hound");
    let foreign = hold(pid);
    subject.order("noted");
    kill(foreign.pid, Signal::SIGKILL).expect("it runs");
    foreign.finish();
    subject.order("threads");
    let capture = session.detach(&[]);
    subject.must_be_exact_in(&capture, 1..3);
    assert!(wait_until(|| changed_bytes(pid) == 0), "breakpoints are left");
    subject.end();
}

#[test]
fn what_an_earlier_attach_in_full_mode_has_left_is_in_nobodys_way() {
    if !requirement::uprobes() {
        return;
    }
    let mut subject = subject();
    let pid = subject.pid();
    let full = attach::attach(pid, &subject.file("full.hound"), &[]);
    let number = full.running.pid.to_string();
    refused(&mut kernel(pid, &subject.file("none.hound")), &["being recorded already", &number]);
    subject.order("noted");
    // Full mode tells usable sizes, and releases of what was there before.
    let from_the_kernel = subject.rules.clone();
    let in_full = Rules { usable_unknown: false, copied: false, ..from_the_kernel.clone() };
    subject.rules = in_full.clone();
    subject.must_be_exact(&full.detach(&[]), 0);
    subject.rules = from_the_kernel;
    assert!(attach::maps(pid).iter().any(|line| line.contains("hound-")), "the library does not stay");
    let session = attach(&subject, "sampled.hound");
    subject.order("threads");
    subject.must_be_exact(&session.detach(&[]), 1);
    let again = attach::attach(pid, &subject.file("again.hound"), &[]);
    subject.order("noted");
    subject.rules = in_full;
    subject.must_be_exact(&again.detach(&["--unload"]), 2);
    subject.end();
}

/// Runs in a mount namespace of its own with another root, which holds the program and its libraries only.
const ENTER: &str = r#"
set -e
mount --make-rprivate /
mount -t tmpfs root "$ROOT"
cp -R "$FILES"/. "$ROOT"
mkdir -p "$ROOT/notes"
mount --bind "$(dirname "$ORACLE_FILE")" "$ROOT/notes"
export ORACLE_FILE=/notes/oracle
exec chroot "$ROOT" /contained
"#;

#[test]
fn a_program_in_another_mount_namespace_has_its_stacks_and_names() {
    if !requirement::uprobes() || !requirement::containers() {
        return;
    }
    let place = tempfile::tempdir().expect("a temporary directory can be made");
    let (files, root) = (place.path().join("files"), place.path().join("root"));
    fs::create_dir_all(&root).expect("the test's own directory");
    let copy = |from: &Path, to: &str| {
        let to = files.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("it lies below the root")).expect("the test's own directory");
        fs::copy(from, &to).unwrap_or_else(|e| panic!("{} to {}: {e}", from.display(), to.display()));
    };
    copy(&program().path(), "contained");
    for library in ["/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libgcc_s.so.1"] {
        copy(Path::new(library), library);
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", ENTER]).env("FILES", &files).env("ROOT", &root);
    let mut subject = ruled(Subject::start_open(&mut command).below_named("contained"));
    assert!(!Path::new("/contained").exists(), "the program's path means something here");
    let session = attach(&subject, "capture.hound");
    assert!(changed_bytes(subject.pid()) > 0, "no breakpoints");
    subject.order("noted");
    subject.order("threads");
    let capture = session.detach(&[]);
    subject.must_be_exact_in(&capture, 0..2);
    assert!(capture.report().sites.iter().any(|s| s.passes("every_entry_point")), "no names");
    subject.end();
}

#[test]
fn a_filter_that_kills_for_the_system_calls_of_probes_kills_nobody() {
    if !requirement::uprobes() {
        return;
    }
    let mut subject = Subject::start(Command::new(Program::new("attach_filtered.c", Build::Optimised).path()).arg("trampolines"));
    let pid = subject.pid();
    let file = subject.file("capture.hound");
    // A kernel that shows such calls to filters is found out on a process of hound's own, and the target is refused; else it is recorded.
    match attach::begin(pid, &file, &mut kernel(pid, &file)) {
        Err(said) => assert!(said.contains("seccomp"), "{said}"),
        Ok(session) => {
            subject.order("work");
            let capture = session.detach(&[]);
            assert!(capture.report().totals.allocations >= 999, "its blocks are not recorded");
        }
    }
    subject.order("work");
    assert!(subject.end().status.success(), "the program was harmed");
}

/// A user that owns nothing but the program.
const USER: &str = "47116";

#[test]
fn two_capabilities_suffice_for_ones_own_programs_and_a_missing_one_is_named() {
    if !requirement::uprobes() || !requirement::program("setpriv") {
        return;
    }
    let bin = binaries::for_everybody();
    let copy = bin.path().join("target");
    fs::copy(program().path(), &copy).expect("room for a program");
    let as_user = |capabilities: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
        command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities, "--bounding-set", capabilities]);
        command
    };
    let mut subject = ruled(Subject::start_open(as_user("-all").arg(&copy)));
    let pid = subject.pid();
    let with = |pid: i32, capabilities: &str, capture: &Path| {
        let mut command = as_user(capabilities);
        command.arg(bin.path().join("hound")).args(kernel(pid, capture).get_args());
        command.env("XDG_RUNTIME_DIR", capture.parent().expect("it lies in a folder"));
        command
    };
    let none = subject.file("none.hound");
    for too_few in ["-all", "-all,+bpf", "-all,+perfmon"] {
        refused(&mut with(pid, too_few, &none), &["CAP_BPF and CAP_PERFMON"]);
    }
    let roots = ruled(Subject::start(&mut Command::new(program().path())));
    for too_few in ["-all,+bpf,+perfmon", "-all,+bpf,+perfmon,+sys_ptrace"] {
        refused(&mut with(roots.pid(), too_few, &none), &["it runs as user 0, hound as user 47116", "run hound as root"]);
    }
    roots.end();
    assert!(!none.exists() && changed_bytes(pid) == 0, "a refusal leaves something");
    let file = subject.file("capture.hound");
    let mut command = with(pid, "-all,+bpf,+perfmon", &file);
    let session = attach::begin(pid, &file, &mut command).unwrap_or_else(|said| panic!("they do not suffice: {said}"));
    let status = fs::read_to_string(format!("/proc/{}/status", session.running.pid)).expect("it runs");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a line of capabilities");
    let bits = u64::from_str_radix(effective.trim(), 16).expect("a hexadecimal number");
    assert_eq!(bits, 1 << 39 | 1 << 38, "hound has other capabilities than BPF and PERFMON: {effective}");
    subject.order("noted");
    kill(session.running.pid, Signal::SIGINT).expect("hound runs");
    let (capture, outcome) = session.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    subject.must_be_exact(&capture, 0);
    assert!(wait_until(|| changed_bytes(pid) == 0), "breakpoints are left");
    subject.end();
}
