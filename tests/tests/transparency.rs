//! What a program sees of itself is the same under hound, and what others see of its death, too.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_tests::capture::{Capture, wait_until_finished};
use hound_tests::compare::{self, Rules};
use hound_tests::compile::{Build, Program};
use hound_tests::oracle::Oracle;
use hound_tests::process::{self, Outcome};
use hound_tests::record::Way;
use hound_tests::{binaries, requirement};
use tempfile::TempDir;

/// hound's words before those of the program, and what it wants in the environment.
fn words(way: Way, capture: &Path) -> (Vec<String>, Vec<String>) {
    let hound = |more: &[&str]| {
        let words = [binaries::hound().display().to_string(), "run".into(), "--quiet".into()];
        let output = ["-o".into(), capture.display().to_string()];
        words.into_iter().chain(more.iter().map(ToString::to_string)).chain(output).chain(["--".into()]).collect()
    };
    match way {
        Way::Preload => {
            let preload = format!("LD_PRELOAD={}", binaries::libhound().display());
            let output = format!("HOUND_OUTPUT={}", capture.display());
            // By the documented default it takes these signals, which a program may see.
            (Vec::new(), vec![preload, output, "HOUND_REGISTER_SIGUSR1=0".into(), "HOUND_REGISTER_SIGUSR2=0".into()])
        }
        Way::Patched => (hound(&["--via", "patch"]), Vec::new()),
        _ => (hound(&[]), Vec::new()),
    }
}

fn ways() -> Vec<Way> {
    let patched = requirement::root().then_some(Way::Patched);
    [Way::Run, Way::Preload].into_iter().chain(patched).collect()
}

/// Through a program that starts it as no launcher of a test does: see there.
fn begun(program: &Path, dir: &Path, (hound, variables): (Vec<String>, Vec<String>)) -> Outcome {
    let mut command = Command::new(program);
    command.current_dir(dir).env_remove("ORACLE_FILE").args(["begin", "ZEBRA=1", "BEE=x=y", "ANT="]).args(variables);
    command.arg(format!("ORACLE_FILE={}", dir.join("oracle").display())).args(["MIDDLE=2", "--"]);
    process::run(command.args(hound).arg(program).args(["one", "", "t wo"]))
}

#[test]
fn a_program_that_looks_at_itself_sees_what_it_sees_alone() {
    for build in [Build::Optimised, Build::Stripped] {
        let program = Program::new("looks_at_itself.c", build);
        // The same directory for all: its name is in what they see.
        let dir = TempDir::new().expect("a temporary directory can be made");
        let alone = begun(&program.path(), dir.path(), (Vec::new(), Vec::new()));
        assert_eq!((alone.shell_status(), alone.err()), (0, String::new()));
        let lines = Oracle::read(&dir.path().join("oracle")).facts[0];
        assert!(lines > 10 && alone.out().contains("maps: heap 1 stack 1 vdso 1 code 1 writable code 0\n"), "{}", alone.out());
        for way in ways() {
            let file = dir.path().join(format!("{way:?}.hound"));
            let recorded = begun(&program.path(), dir.path(), words(way, &file));
            let told = |outcome: &Outcome| -> Vec<String> { outcome.out().lines().map(str::to_owned).collect() };
            let (expected, got) = (told(&alone), told(&recorded));
            let first = expected.iter().zip(&got).find(|(alone, recorded)| alone != recorded);
            assert_eq!((first, got.len()), (None, expected.len()), "{way:?}: alone, and under hound");
            assert_eq!((recorded.shell_status(), recorded.err()), (0, String::new()), "{way:?}");
            let capture = if way == Way::Preload { wait_until_finished(&file) } else { Capture { path: file } };
            let oracle = Oracle::read(&dir.path().join("oracle"));
            let rules = Rules { function_starts: program.function_starts(), ..Rules::default() };
            let differences = compare::differences(&oracle, &capture.events(), &rules);
            assert!(differences.is_empty() && compare::noted(&oracle) > 0, "{way:?}: {}", differences.join("\n"));
            // And there is something of hound's that it had to find unharmed by.
            assert!(oracle.facts[0] > lines, "{way:?}: no more mappings than alone");
        }
    }
}

/// Files that a program's death has left in its directory, but for ours.
fn cores(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).expect("the test's own directory").flatten().map(|entry| entry.path());
    files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("core"))).collect()
}

/// Dies with no limit for core files, in a directory of its own.
fn dies(how: &str, dir: &Path, (hound, variables): (Vec<String>, Vec<String>)) -> Outcome {
    let program = Program::new("die.c", Build::Optimised).path();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited && exec env \"$@\"", "sh"]).args(variables).args(hound);
    process::run(command.arg(program).arg(how).current_dir(dir))
}

/// What a debugger makes of a core file: what it is of, and the functions on the stack.
fn read_by_gdb(core: &Path) -> (String, Vec<String>) {
    let program = Program::new("die.c", Build::Optimised).path();
    let mut gdb = Command::new("gdb");
    let told = process::run(gdb.args(["-nx", "-q", "-batch", "-ex", "bt"]).arg(program).arg(core)).out();
    let of = told.lines().find(|line| line.starts_with("Core was generated by")).unwrap_or_default().to_owned();
    // "#1  0x00… in raise () from …", "#0  main (argc=…"
    let function = |line: &str| {
        let words: Vec<&str> = line.strip_prefix('#')?.split_whitespace().collect();
        let at = if words.get(2) == Some(&"in") { 3 } else { 1 };
        words.get(at).map(ToString::to_string)
    };
    (of, told.lines().filter_map(function).collect())
}

#[test]
fn a_crash_leaves_the_core_file_that_it_leaves_alone() {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let is_here = !pattern.starts_with('|') && !pattern.contains('/') && pattern.starts_with("core");
    let dir = || TempDir::new().expect("a temporary directory can be made");
    for how in ["segv", "abort", "trap"] {
        let place = dir();
        let alone = dies(how, place.path(), (Vec::new(), Vec::new()));
        if !requirement::fulfilled("core dumps", alone.status.core_dumped()) {
            return;
        }
        let expected = if is_here { cores(place.path()) } else { Vec::new() };
        for way in ways() {
            let place = dir();
            let file = place.path().join("capture.hound");
            let recorded = dies(how, place.path(), words(way, &file));
            assert_eq!(recorded.shell_status(), alone.shell_status(), "{how}, {way:?}: {}", recorded.err());
            if way == Way::Preload {
                assert!(recorded.status.core_dumped(), "{how}: its parent is told of a core");
                wait_until_finished(&file);
            }
            if !requirement::fulfilled("core files in the working directory (kernel.core_pattern)", is_here) {
                continue;
            }
            let ([core], [found]) = (&expected[..], &cores(place.path())[..]) else { panic!("{how}, {way:?}: not one core file each") };
            let ((of, stack), seen) = (read_by_gdb(core), read_by_gdb(found));
            assert_eq!(seen, (of.clone(), stack.clone()), "{how}, {way:?}: what gdb reads");
            assert!(of.contains("die") && stack.last().is_some_and(|name| name == "main"), "{of} {stack:?}");
            // The ring and most of what else is hound's are left out.
            let bytes = |path: &Path| fs::metadata(path).expect("it is there").blocks() * 512;
            assert!(bytes(found) < bytes(core) + (4 << 20), "{how}, {way:?}: {} instead of {} bytes", bytes(found), bytes(core));
        }
    }
}

/// Whoever ignores SIGPIPE writes on; whoever does not ends. Either is what the program was begun with.
#[test]
fn a_broken_pipe_is_to_the_program_what_it_is_alone() {
    let dir = TempDir::new().expect("a temporary directory can be made");
    let mut seen = BTreeSet::new();
    for ignored in ["ignored", ""] {
        let told = |hound: &str| {
            let python = "import os, subprocess, sys, signal\n\
                          signal.signal(signal.SIGPIPE, signal.SIG_IGN if sys.argv[1] else signal.SIG_DFL)\n\
                          r, w = os.pipe(); os.close(r)\n\
                          p = subprocess.run(sys.argv[2:], stdout=w, stderr=subprocess.DEVNULL, restore_signals=False)\n\
                          print(p.returncode if p.returncode >= 0 else 128 - p.returncode)";
            let mut command = Command::new("python3");
            command.args(["-c", python, ignored]).args(hound.split_whitespace()).arg("yes");
            process::run(&mut command).out().trim().to_owned()
        };
        let alone = told("");
        for way in ["", "--via patch", "--engine kernel"] {
            let hound = format!("{} run --quiet {way} -o {}/pipe.hound --", binaries::hound().display(), dir.path().display());
            if way.is_empty() || requirement::uprobes() {
                assert_eq!(told(&hound), alone, "{way} {ignored}");
            }
        }
        seen.insert(alone);
    }
    assert_eq!(seen, BTreeSet::from(["1".to_owned(), "141".to_owned()]), "yes says so, or is ended");
}
