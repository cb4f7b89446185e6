//! A hound that records is killed, stopped or told to end; and what the next one makes of what it finds.

use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use hound_common::attach::{Attachment, RING_NAME, VERSION};
use hound_common::ring::Control;
use hound_tests::attach::{self, Session};
use hound_tests::capture::{Capture, hound};
use hound_tests::process;
use hound_tests::requirement;
use hound_tests::visited::Visited;
use nix::sys::signal::{Signal, kill};

/// As long as a target may wait for a hound that is gone, many times over; it would wait a minute for one that it believes in.
const PATIENCE_US: u64 = 5_000_000;

/// Attached, under load, with something in the capture.
fn recording(target: &Visited) -> Session {
    let session = attach::attach(target.pid(), &target.capture(), &[]);
    let written = || std::fs::metadata(target.capture()).is_ok_and(|file| file.len() > 200_000);
    assert!(process::wait_until(written), "nothing reaches the capture: {}", session.running.said());
    session
}

#[test]
fn a_hound_killed_while_it_drains_holds_nobody_up() {
    if !requirement::root() {
        return;
    }
    let target = Visited::start();
    for round in 0..3 {
        let session = recording(&target);
        target.longest_us();
        kill(session.running.pid, Signal::SIGKILL).expect("hound runs");
        session.running.finish();
        assert!(target.is_patched(), "a killed hound leaves its patches");
        // Far more than the ring has room for: nobody waits for long, or again.
        let from = target.progress();
        let on = || target.progress().iter().take(3).zip(&from).all(|(now, then)| *now > then + 200_000);
        assert!(process::wait_until(on), "round {round}: {:?} {from:?}", target.progress());
        target.progresses("after hound was killed");
        let longest = target.longest_us();
        println!("round {round}: the longest allocation took {longest} µs");
        assert!(longest < PATIENCE_US, "an allocation took {longest} µs");
        target.must_be_repaired("after hound was killed");
    }
    target.end();
}

#[test]
fn a_hound_that_is_stopped_and_goes_on_tells_the_truth() {
    if !requirement::root() {
        return;
    }
    let target = Visited::start();
    let session = recording(&target);
    target.longest_us();
    kill(session.running.pid, Signal::SIGSTOP).expect("hound runs");
    let (from, stopped) = (target.progress(), Instant::now());
    let on = || target.progress().iter().take(3).zip(&from).all(|(now, then)| *now > then + 200_000);
    assert!(process::wait_until(|| stopped.elapsed() > Duration::from_secs(3) && on()), "{from:?} {:?}", target.progress());
    target.progresses("while hound is stopped");
    let longest = target.longest_us();
    assert!(longest < PATIENCE_US, "an allocation took {longest} µs");
    // Stopped is not dead: what it has begun is its own.
    let second = target.capture().with_extension("second");
    let refused = attach::refused(target.pid(), &second);
    assert!(refused.err().contains(&session.running.pid.to_string()), "the first is not named: {}", refused.err());
    kill(session.running.pid, Signal::SIGCONT).expect("hound is there");
    kill(session.running.pid, Signal::SIGINT).expect("hound is there");
    let outcome = session.running.finish();
    let err = outcome.err();
    assert_eq!(outcome.shell_status(), 0, "{err}");
    assert!(err.contains("recording ended early"), "the capture has a hole, and nobody says so: {err}");
    let check = Capture { path: target.capture() }.check();
    assert!(check.status.success(), "hound check: {}{}", check.out(), check.err());
    target.must_be_repaired("after hound was stopped");
    target.end();
}

#[test]
fn signals_to_hound_end_the_recording_and_complete_the_capture() {
    if !requirement::root() {
        return;
    }
    let target = Visited::start();
    for signals in [&[Signal::SIGINT, Signal::SIGINT][..], &[Signal::SIGTERM], &[Signal::SIGHUP], &[Signal::SIGQUIT, Signal::SIGTERM]] {
        let session = recording(&target);
        for signal in signals {
            kill(session.running.pid, *signal).expect("hound runs");
        }
        let outcome = session.running.finish();
        assert_eq!(outcome.shell_status(), 0, "{signals:?}: {}", outcome.err());
        assert!(!target.is_patched(), "{signals:?} left patches: {}", outcome.err());
        let check = Capture { path: target.capture() }.check();
        assert!(check.status.success(), "{signals:?}: hound check: {}{}", check.out(), check.err());
        target.progresses(&format!("after {signals:?}"));
        target.must_be_repaired(&format!("after {signals:?}"));
    }
    target.end();
}

/// Where the ring is mapped.
fn ring(target: &Visited) -> u64 {
    let maps = attach::maps(target.pid());
    let line = maps.iter().find(|line| line.contains(&format!("/memfd:{RING_NAME}"))).expect("the ring is mapped");
    u64::from_str_radix(line.split('-').next().unwrap_or(""), 16).expect("a map's line begins with an address")
}

fn leave_dormant(target: &Visited) {
    let session = recording(target);
    session.detach(&[]);
    std::fs::remove_file(target.capture()).expect("it was written");
}

#[test]
fn a_drainer_that_is_another_process_by_now_is_no_hound() {
    if !requirement::root() {
        return;
    }
    let target = Visited::start();
    let bystander = process::start(std::process::Command::new("sleep").arg("1000"));
    let set = |value: u32| {
        let at = ring(&target) + offset_of!(Control, drainer) as u64;
        target.memory().write_all_at(&value.to_le_bytes(), at).expect("the ring is writable");
    };
    let bystander_pid = bystander.pid.as_raw().cast_unsigned();
    leave_dormant(&target);
    set(bystander_pid);
    target.must_be_repaired("asleep, and its drainer's number is another's");
    let session = recording(&target);
    kill(session.running.pid, Signal::SIGKILL).expect("hound runs");
    session.running.finish();
    set(bystander_pid);
    assert!(target.is_patched());
    target.must_be_repaired("armed, and its drainer's number is another's");
    kill(bystander.pid, Signal::SIGKILL).expect("it sleeps");
    bystander.finish();
    target.end();
}

#[test]
fn a_library_of_another_version_is_refused_and_left_alone() {
    if !requirement::root() {
        return;
    }
    let target = Visited::start();
    leave_dormant(&target);
    let memory = target.memory();
    let mut attachment = [0; 8];
    memory.read_exact_at(&mut attachment, ring(&target) + offset_of!(Control, attachment) as u64).expect("the ring is mapped");
    let at = u64::from_le_bytes(attachment) + offset_of!(Attachment, version) as u64;
    let ring_at = ring(&target) + offset_of!(Control, version) as u64;
    for (at, what) in [(at, "attachment"), (ring_at, "ring")] {
        let mut version = [0; 4];
        memory.read_exact_at(&mut version, at).expect("it is mapped");
        memory.write_all_at(&(VERSION + 1000).to_le_bytes(), at).expect("a parent may write");
        let before = attach::maps(target.pid());
        let refused = attach::refused(target.pid(), &target.capture());
        assert!(refused.err().contains("version"), "{what}: {}", refused.err());
        let detach = hound(["detach", "--unload", "-p", &target.pid().to_string()]);
        assert!(!detach.status.success() && detach.err().contains("version"), "{what}: {}", detach.err());
        let still: Vec<_> = before.iter().filter(|line| line.contains(RING_NAME)).collect();
        assert!(still.iter().all(|line| attach::maps(target.pid()).contains(line)), "{what}: the ring was taken out");
        target.progresses("refused for its version");
        memory.write_all_at(&version, at).expect("a parent may write");
    }
    target.must_be_repaired("of this version again");
    target.end();
}

#[test]
fn a_program_that_hound_started_is_refused_and_recorded_on() {
    if !requirement::root() {
        return;
    }
    use hound_tests::compile::Build;
    use hound_tests::record::{Target, Way};
    for way in [Way::Run, Way::Preload] {
        let started = Target::new("endless.c", Build::Optimised).start(way);
        started.running.wait_for_output("ready");
        let pid = endless(&started.oracle_file());
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let refused = attach::refused(pid, &dir.path().join("c.hound"));
        // One that answers says so itself; of one that does not, the library tells.
        assert!(["since its start", "it was started so"].iter().any(|said| refused.err().contains(said)), "{}", refused.err());
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).expect("it was not harmed");
        let recording = started.finish();
        recording.must_be_exact_but(1);
    }
}

/// The process that notes into an oracle.
fn endless(oracle: &std::path::Path) -> i32 {
    let mut word = [0; 8];
    std::fs::File::open(oracle).and_then(|f| f.read_exact_at(&mut word, 40)).expect("the target has made its oracle");
    u64::from_le_bytes(word) as i32
}
