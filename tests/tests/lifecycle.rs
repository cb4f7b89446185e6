//! How programs begin, multiply and end: before main, thread exit, fork, exec, every kind of death, libraries that come and go.

use hound_tests::capture::{Report, Site};
use hound_tests::compile::{Build, Program, sources};
use hound_tests::process::{self, wait_until};
use hound_tests::record::{Target, Way, exact_in_all_builds};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn blocks_made_before_main_and_after_it_are_recorded() {
    exact_in_all_builds("before_main.c");
}

#[test]
fn thread_exit_hooks_that_allocate_are_recorded() {
    let recording = Target::new("tls_dtor.cpp", Build::Optimised).record(Way::Run);
    let (oracle, _) = recording.must_be_unharmed().must_be_exact();
    assert_eq!(oracle.facts[0], 150, "rounds of key destructors");
}

#[test]
fn a_fork_leaves_the_parent_complete_and_the_child_unharmed_and_unrecorded() {
    for way in [Way::Run, Way::Preload] {
        let recording = Target::new("fork.c", Build::Optimised).record(way);
        let (oracle, events) = recording.must_be_unharmed().must_be_exact();
        assert!(events.iter().all(|e| e.size != 4242), "a block of the child was recorded");
        assert_eq!(oracle.by_thread().len(), 2);
    }
}

#[test]
fn vfork_spawn_and_failing_exec_leave_the_recording_going() {
    for how in ["vfork", "spawn", "fail"] {
        let recording = Target::new("exec.c", Build::Optimised).args(&[how]).record(Way::Run);
        recording.must_be_unharmed().must_be_exact();
    }
}

#[test]
fn an_image_replaced_by_exec_leaves_a_complete_capture() {
    let recording = Target::new("exec.c", Build::Optimised).args(&["exec"]).record(Way::Run);
    let (oracle, _) = recording.must_be_unharmed().must_be_exact();
    assert_eq!(oracle.notes.len(), 1);
}

#[test]
fn every_kind_of_death_leaves_every_event_symbolised() {
    for how in ["exit", "_exit", "quick_exit", "syscall", "abort", "kill", "term", "segv", "trap", "thread"] {
        let recording = Target::new("die.c", Build::Optimised).args(&[how]).record(Way::Run);
        recording.must_be_unharmed().must_be_exact();
        leaks_are_blamed_on_their_line(&recording.capture.report(), how);
    }
}

#[test]
fn a_preloaded_program_killed_by_a_signal_leaves_every_event_symbolised() {
    for how in ["kill", "segv", "_exit"] {
        let recording = Target::new("die.c", Build::Optimised).args(&[how]).record(Way::Preload);
        recording.must_be_unharmed().must_be_exact();
        leaks_are_blamed_on_their_line(&recording.capture.report(), how);
    }
}

fn leaks_are_blamed_on_their_line(report: &Report, how: &str) {
    let sites: Vec<&Site> = report.sites.iter().filter(|s| s.passes("leak_here") && s.passes("main")).collect();
    assert_eq!(sites.iter().map(|s| s.live_blocks).sum::<u64>(), 100, "die {how}: live blocks under leak_here");
    let source = std::fs::read_to_string(sources().join("die.c")).expect("the source is there");
    let line = source.lines().position(|l| l.contains("leak_here(size_t n) {")).map(|i| i as u64 + 1);
    let frame = sites[0].frames.iter().find(|f| f.function.as_deref() == Some("leak_here")).expect("the frame is there");
    assert!(frame.file.as_ref().is_some_and(|f| f.ends_with("die.c")), "die {how}: file {:?}", frame.file);
    assert_eq!(frame.line, line, "die {how}");
}

#[test]
fn a_program_killed_from_outside_loses_nothing_it_noted() {
    let started = Target::new("endless.c", Build::Optimised).start(Way::Run);
    started.running.wait_for_output("ready");
    kill(noted_pid(&started.oracle_file()), Signal::SIGKILL).expect("the target is alive");
    let recording = started.finish();
    assert_eq!(recording.outcome.shell_status(), 128 + 9);
    let (oracle, _) = recording.must_be_exact_but(1);
    assert!(oracle.notes.len() > 4000, "all four threads were under way");
}

#[test]
fn if_hound_is_killed_the_target_goes_on_and_what_was_written_can_be_read() {
    let started = Target::new("endless.c", Build::Optimised).start(Way::Run);
    started.running.wait_for_output("ready");
    let target = noted_pid(&started.oracle_file());
    assert_ne!(target, started.running.pid, "hound run is another process than its target");
    kill(started.running.pid, Signal::SIGKILL).expect("hound is alive");
    // Far more than rings could hold: a target waiting for a dead reader would not get there.
    let file = started.oracle_file();
    let before = noted_count(&file);
    let goes_on = wait_until(|| noted_count(&file) > before + 1_000_000 || noted_count(&file) > 4_000_000);
    kill(target, Signal::SIGKILL).expect("the target outlives hound");
    assert!(goes_on, "the target stopped at {} notes", noted_count(&file));
}

fn noted_pid(oracle: &std::path::Path) -> Pid {
    Pid::from_raw(head_word(oracle, 40) as i32)
}

fn noted_count(oracle: &std::path::Path) -> u64 {
    head_word(oracle, 24)
}

/// A word of the head of an oracle that is still being written.
fn head_word(oracle: &std::path::Path, at: u64) -> u64 {
    use std::os::unix::fs::FileExt;
    let mut word = [0; 8];
    std::fs::File::open(oracle).and_then(|f| f.read_exact_at(&mut word, at)).expect("the target has made its oracle");
    u64::from_le_bytes(word)
}

#[test]
fn a_daemon_is_let_go_and_its_parents_recording_ends() {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let sign = dir.path().join("daemon");
    let target = Target::new("daemon.c", Build::Optimised).args(&[&sign]);
    let alone = target.alone();
    let done = || std::fs::read_to_string(&sign).is_ok_and(|s| s == "daemon done\n");
    assert!(wait_until(done));
    std::fs::remove_file(&sign).expect("the daemon wrote it");
    let recording = target.record(Way::Run);
    recording.must_have_behaved_like(&alone);
    recording.must_be_exact();
    assert!(wait_until(done), "the daemon did not live to its end under hound");
}

#[test]
fn leaks_are_blamed_on_the_library_that_was_there_at_the_time() {
    let library = |define: &str, name: &str| Program::new("lib_ab.c", Build::Optimised).with(&[define]).shared(name).path();
    let (a, b) = (library("-DLIB=a", "a"), library("-DLIB=b", "b"));
    let recording = Target::new("dlopen_reuse.c", Build::Optimised).args(&[a, b]).record(Way::Run);
    let (oracle, _) = recording.must_be_unharmed().must_be_exact();
    assert!(oracle.facts[0] > 0, "no address was reused");
    let report = recording.capture.report();
    for (own, other, size) in [("a", "b", 1000), ("b", "a", 2000)] {
        let name = |lib: &str, function: &str| format!("{lib}_{function}");
        let sites: Vec<&Site> = report.sites.iter().filter(|s| s.passes(&name(own, "inner"))).collect();
        let bytes: u64 = sites.iter().map(|s| s.live_bytes).sum();
        let blocks: u64 = sites.iter().map(|s| s.live_blocks).sum();
        assert_eq!((blocks, bytes), (60, 20 * (3 * size + 3)), "leaks of library {own}");
        assert!(
            sites.iter().all(|s| s.passes(&name(own, "outer")) && !s.passes(&name(other, "outer")) && !s.passes(&name(other, "inner")))
        );
    }
}

#[test]
fn a_capture_is_the_same_answer_when_asked_twice() {
    let recording = Target::new("die.c", Build::Optimised).args(&["exit"]).record(Way::Run);
    let ask = || process::Outcome::out(&recording.capture.ask("report", &["--format", "json", "--all"]));
    assert_eq!(ask(), ask());
}
