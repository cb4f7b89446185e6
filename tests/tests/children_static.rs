//! `--children`: what nothing can be preloaded into, and what musl's loader loads, is recorded below a recorded program as exactly as alone, and is
//! harmed no more.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::attach;
use hound_tests::capture::hound;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, Outcome};
use hound_tests::record::{Target, Way};
use hound_tests::{binaries, requirement};
use serde_json::Value;
use tempfile::TempDir;

/// By vfork and exec; by exec alone; by posix_spawn; by exec in a thread that is not the first; searched for.
const BEGUN: [&[&str]; 5] = [
    &["/bin/sh", "-c", "\"$0\" \"$@\"; exit $?"],
    &["/bin/sh", "-c", "exec \"$0\" \"$@\""],
    &[
        "/usr/bin/python3",
        "-c",
        "import os, sys\npid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)\nsys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
    ],
    &[
        "/usr/bin/python3",
        "-c",
        "import os, sys, threading\nthreading.Thread(target=os.execv, args=(sys.argv[1], sys.argv[1:])).start()\nthreading.Event().wait()",
    ],
    &["/usr/bin/env", "A=b"],
];

/// glibc's, static and static PIE; musl's, dynamic and static.
fn targets(source: &'static str) -> Vec<Target> {
    let new = || Target::new(source, Build::Optimised).hound(&["--children"]);
    let mut targets = vec![new().linked("-static"), new().linked("-static-pie")];
    // In musl's signals.c a thread that was joined may be seen for a moment more, without hound too.
    if source.ends_with(".c") && source != "signals.c" && requirement::program("musl-gcc") {
        targets.extend([&[][..], &["-static", "-DSTATIC"]].map(|flags| new().by("musl-gcc").with(flags)));
    }
    targets
}

fn report(capture: &Path) -> Value {
    let outcome = hound([Path::new("report"), capture].into_iter().chain(["--format", "json", "--all"].map(Path::new)));
    assert!(outcome.status.success(), "{}", outcome.err());
    serde_json::from_str(&outcome.out()).expect("JSON")
}

fn must_be_exact(target: &Target, way: Way) {
    let recording = target.record(way);
    recording.must_be_unharmed().must_be_exact();
    let report = report(&recording.capture.path);
    assert_eq!((&report["totals"]["lost_events"], &report["totals"]["unknown_frees"]), (&0.into(), &0.into()), "{}", report["totals"]);
}

#[test]
fn every_hazard_below_a_shell_is_exact() {
    if !requirement::root() {
        return;
    }
    for source in ["before_main.c", "shapes.c", "threads.c", "longjmp.c", "signals.c", "exceptions.cpp"] {
        for target in targets(source) {
            must_be_exact(&target.below(BEGUN[0]), Way::Run);
        }
    }
}

#[test]
fn however_they_are_begun_and_however_their_parent_is_recorded() {
    if !requirement::root() {
        return;
    }
    for (number, how) in BEGUN.into_iter().enumerate() {
        for target in targets("threads.c") {
            // Where it is patched, libc's exec is all that is seen of a parent.
            for way in [Way::Run, Way::Patched].into_iter().take(1 + usize::from(number % 2 == 0)) {
                must_be_exact(&target.clone().below(how), way);
            }
        }
    }
}

fn run(script: &str, program: &Path) -> (TempDir, Outcome, Value) {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let path = dir.path().join("tree.hound");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--children", "--quiet", "-o"]).arg(&path).args(["--", "/bin/sh", "-c", script, "sh"]).arg(program);
    let outcome = process::run(command.current_dir(dir.path()));
    let report = report(&path);
    (dir, outcome, report)
}

/// How many processes ran this program, each with something allocated.
fn recorded(report: &Value, name: &str) -> usize {
    let processes = report["processes"].as_array().expect("a list").iter();
    let is_it = |one: &&Value| one["command"][0].as_str().is_some_and(|word| word.ends_with(name)) && one["allocations"].as_u64() > Some(0);
    processes.filter(is_it).count()
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("it has a name").to_string_lossy().into_owned()
}

/// Scripts that it interprets, a path that has to be searched for, a copy of the shell that is static; many at a time.
#[test]
fn a_hundred_of_them_at_a_time_are_all_there() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("threads.c", Build::Optimised).with(&["-static", "-DO_NO_STACKS"]).path();
    let script =
        "for i in 1 2 3 4 5 6 7 8 9 10; do for j in 1 2 3 4 5 6 7 8 9 10; do ORACLE_FILE=$PWD/$i.$j \"$1\" >out.$i.$j & done; wait; done";
    let (_dir, outcome, report) = run(script, &program);
    assert_eq!((outcome.shell_status(), outcome.err().as_str()), (0, ""));
    assert_eq!(recorded(&report, &file_name(&program)), 100);
    assert_eq!(report["totals"]["lost_events"], 0);
}

#[test]
fn a_static_interpreter_of_a_script_is_recorded() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("threads.c", Build::Optimised).with(&["-static", "-DO_NO_STACKS"]).path();
    let dir = TempDir::new().expect("a temporary directory can be made");
    let script = dir.path().join("script");
    std::fs::write(&script, format!("#! {}\n", program.display())).expect("room for a line");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("the test's own file");
    let (_dir, outcome, report) = run("PATH=${1%/*}:$PATH; ORACLE_FILE=$PWD/notes ${1##*/} >out; exit $?", &script);
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    assert_eq!(recorded(&report, &file_name(&program)), 1, "{}", report["processes"]);
}

/// What a shell that was attached to begins from then on.
#[test]
fn below_a_shell_that_was_attached_to() {
    if !requirement::root() {
        return;
    }
    for flags in [&["-static"][..], &["-static-pie"]] {
        let program = Program::new("sleeps.c", Build::Optimised).with(flags).path();
        let dir = TempDir::new().expect("a temporary directory can be made");
        let (reader, mut writer) = std::io::pipe().expect("a pipe can be made");
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "echo ready; read line; \"$1\" 0; exit $?", "sh"]).arg(&program);
        let shell = process::start_reading(&mut shell, reader);
        shell.wait_for_output("ready");
        let session = attach::attach(shell.pid.as_raw(), &dir.path().join("c.hound"), &["--children"]);
        writer.write_all(b"go\n").expect("it reads");
        let outcome = shell.finish();
        assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
        let (capture, said) = session.finish();
        let report = report(&capture.path);
        assert_eq!(recorded(&report, &file_name(&program)), 1, "{} {}", report["processes"], said.err());
    }
}

/// A program that changes user would not, with somebody watching it.
#[test]
fn programs_that_change_user_do() {
    if !requirement::root() {
        return;
    }
    let program = Program::new("sleeps.c", Build::Optimised).with(&["-static"]).path();
    let dir = TempDir::new().expect("a temporary directory can be made");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("the test's own folder");
    let copy = dir.path().join("changes");
    std::fs::copy(&program, &copy).expect("room for it");
    std::os::unix::fs::chown(&copy, Some(1), None).expect("this is root");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o4755)).expect("the test's own file");
    let script = "\"$1\" 2 & sleep 1; grep ^Uid /proc/$!/status; wait; exit 0";
    let (_dir, outcome, _) = run(script, &copy);
    let users: Vec<String> = outcome.out().split_whitespace().skip(1).map(str::to_owned).collect();
    assert_eq!(users, ["0", "1", "1", "1"], "{}", outcome.err());
    assert!(outcome.err().contains("1 of the processes that the program began is not recorded"), "{}", outcome.err());
}

/// A filter that kills who asks: after it came nothing is asked for, whatever is begun. The library sees it come where it is preloaded, and where
/// functions are patched.
#[test]
fn behind_a_filter_nothing_is_asked_for() {
    for (linked, how, patched) in filtered() {
        let outcome = filter(linked, how, patched).1;
        assert_eq!(outcome.shell_status(), 0, "{linked} {how} {patched}: {}", outcome.err());
        // The forked child, and what its parent has become.
        let said = "2 of the processes that the program began are not recorded";
        assert!(outcome.err().contains(said), "{linked} {how} {patched}: {}", outcome.err());
    }
}

/// One that the kernel did not take is none.
#[test]
fn behind_a_filter_that_could_not_be_set_all_is_recorded() {
    for (linked, how, patched) in filtered() {
        let (_dir, outcome, report) = filter(linked, &format!("fails-{how}"), patched);
        assert_eq!(outcome.shell_status(), 0, "{linked} {how} {patched}: {}", outcome.err());
        assert!(!outcome.err().contains("not recorded"), "{linked} {how} {patched}: {}", outcome.err());
        let processes = report["processes"].as_array().expect("a list").iter();
        let forked = processes.filter(|one| one["began"] == "fork" && one["allocations"].as_u64() >= Some(100)).count();
        let program = file_name(&sleeps(linked));
        assert_eq!((forked, recorded(&report, &program)), (1, 1), "{linked} {how} {patched}: {}", report["processes"]);
    }
}

/// The shells that libc begins by itself find no way to hound, and what else they are to preload.
#[test]
fn shells_behind_a_filter_are_not_harmed() {
    let program = Program::new("shells_behind_a_filter.c", Build::Optimised).path();
    let library = Program::new("lib_ab.c", Build::Optimised).shared("beside").path();
    for list in [String::new(), format!("LD_PRELOAD='{}' ", library.display())] {
        let (_dir, outcome, _) = run(&format!("{list}\"$1\"; exit $?"), &program);
        assert_eq!(outcome.shell_status(), 0, "{list}: {}", outcome.err());
        let kept = if list.is_empty() { String::new() } else { library.display().to_string() };
        // Where our own library stood in the list there are colons, which the loader passes over.
        let lists: Vec<String> = outcome.out().lines().map(|line| line.replacen(": ", "=", 1).replace(':', "")).collect();
        assert_eq!(lists, [format!("system={kept}"), format!("popen={kept}")], "{}", outcome.out());
        assert!(outcome.err().contains("2 of the processes that the program began are not recorded"), "{list}: {}", outcome.err());
    }
}

/// How what is begun is linked, by what the filter is set, whether functions are patched.
fn filtered() -> Vec<(&'static str, &'static str, bool)> {
    let linked = ["-static", "-rdynamic"].into_iter();
    let all =
        linked.flat_map(|linked| ["prctl", "syscall"].into_iter().flat_map(move |how| [false, true].map(|patched| (linked, how, patched))));
    all.filter(|(.., patched)| !patched || requirement::root()).collect()
}

fn sleeps(linked: &'static str) -> PathBuf {
    Program::new("sleeps.c", Build::Optimised).with(&[linked]).path()
}

fn filter(linked: &'static str, how: &str, patched: bool) -> (TempDir, Outcome, Value) {
    let filters = Program::new("filters_and_begins.c", Build::Optimised).path();
    let program = sleeps(linked);
    if !patched {
        return run(&format!("'{}' {how} \"$1\" 2; exit $?", filters.display()), &program);
    }
    let dir = TempDir::new().expect("a temporary directory can be made");
    let path = dir.path().join("tree.hound");
    let mut command = Command::new(binaries::hound());
    command.args(["run", "--children", "--via", "patch", "--quiet", "-o"]).arg(&path).arg("--").arg(filters).arg(how).arg(program).arg("2");
    let outcome = process::run(command.current_dir(dir.path()));
    let report = report(&path);
    (dir, outcome, report)
}

/// Plain preloading into a program of musl's: it runs as ever.
#[test]
fn a_program_of_musls_is_not_harmed_by_a_library_that_is_not_for_it() {
    if !requirement::program("musl-gcc") {
        return;
    }
    let target = Target::new("threads.c", Build::Optimised).by("musl-gcc");
    let started = target.start(Way::Preload);
    let outcome = started.running.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    assert_eq!(outcome.out(), target.alone().out());
}
