//! Libraries are unloaded by other threads while the stack holds words that look like their code: what has gone is not read.

use std::io::Write;
use std::process::{Command, Stdio};

use hound_tests::attach;
use hound_tests::compile::{Build, Program};
use hound_tests::process::{self, EndOf};
use hound_tests::record::{Target, Way};
use hound_tests::requirement;

const ROUNDS: &str = "300";

fn library(name: &str) -> std::path::PathBuf {
    Program::new("lib_unloading.c", Build::Optimised).with(&["-Wl,--build-id"]).shared(name).path()
}

/// What it says at its end: "guesses N threads N".
fn has_come_to_its_point(printed: &str) {
    let line = printed.lines().last().unwrap_or("");
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(numbers.len() == 2 && numbers.iter().all(|number| *number > 0), "{printed}");
}

#[test]
fn a_launched_program_that_unloads_libraries_is_unharmed() {
    let (goes, stays) = (library("libgoes.so"), library("libstays.so"));
    let rounds = std::path::PathBuf::from(ROUNDS);
    let recording = Target::new("unloading.c", Build::Optimised).args(&[goes, stays, rounds]).record(Way::Run);
    assert_eq!(recording.outcome.shell_status(), 0, "{}", recording.outcome.err());
    has_come_to_its_point(&recording.outcome.out());
}

#[test]
fn an_attached_program_that_unloads_libraries_is_unharmed() {
    if !requirement::root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let mut command = Command::new(Program::new("unloading.c", Build::Optimised).path());
    command.args([library("libgoes.so"), library("libstays.so")]).arg("0");
    let (reader, writer) = std::io::pipe().expect("descriptors are left");
    let running = process::start_reading(&mut command, Stdio::from(reader));
    let _end = EndOf(running.pid);
    running.wait_for_output("ready");
    for _ in 0..3 {
        let rounds = || running.printed().matches("round").count();
        let (session, _) = attach::attach_patiently(running.pid.as_raw(), &dir.path().join("capture.hound"));
        let before = rounds();
        assert!(process::wait_until(|| rounds() > before + 1 || running.has_ended()), "it stands still");
        assert!(!running.has_ended(), "the program ended under hound: {}", running.said());
        assert!(session.detach(&[]).report().totals.allocations > 0, "nothing was recorded");
    }
    drop(writer);
    let outcome = running.finish();
    assert_eq!(outcome.shell_status(), 0, "{}", outcome.err());
    has_come_to_its_point(&outcome.out());
}

#[test]
fn a_library_in_the_place_of_one_that_was_there_at_the_attach_is_what_it_is() {
    if !requirement::root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let library = |name: &str, flags: &[&str]| Program::new("attach_library.c", Build::Optimised).with(flags).shared(name).path();
    let mut command = Command::new(Program::new("elsewhere.c", Build::Optimised).path());
    command.args([library("big", &["-DROOM"]), library("small", &[])]);
    let (reader, mut writer) = std::io::pipe().expect("descriptors are left");
    let running = process::start_reading(&mut command, Stdio::from(reader));
    let _end = EndOf(running.pid);
    running.wait_for_output("ready");
    let (session, _) = attach::attach_patiently(running.pid.as_raw(), &dir.path().join("capture.hound"));
    writer.write_all(b"\n").expect("the program reads");
    running.wait_for_output("done");
    let report = session.detach(&[]).report();
    drop(writer);
    let outcome = running.finish();
    assert_eq!((outcome.shell_status(), outcome.out().contains("unharmed")), (0, true), "{}", outcome.err());
    let site = report.sites.iter().find(|site| site.passes("library_malloc")).expect("its function has its name");
    assert_eq!((site.allocations, site.allocated_bytes), (100, 100 * 12345));
}

/// Made at run time, in the place of other code: same slots, same return addresses, another caller behind a frame of another size.
#[test]
fn code_that_takes_the_place_of_other_code_has_its_own_callers() {
    let patched = requirement::root().then_some(&["--via", "patch"][..]);
    for options in [&[][..]].into_iter().chain(patched) {
        let recording = Target::new("replaces_code.c", Build::Optimised).hound(options).record(Way::Run);
        assert_eq!((recording.outcome.shell_status(), &*recording.outcome.out()), (0, "ok\n"), "{options:?}: {}", recording.outcome.err());
        let report = recording.capture.report();
        let of = |caller: &str| {
            let sites = report.sites.iter().filter(|site| site.passes("allocates") && site.passes(caller));
            sites.fold((0, 0), |(blocks, bytes), site| (blocks + site.allocations, bytes + site.allocated_bytes))
        };
        assert_eq!((of("first"), of("second")), ((100, 100 * 20_000), (100, 100 * 40_000)), "{options:?}");
    }
}
